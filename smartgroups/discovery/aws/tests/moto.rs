//! Discovery against an AWS that others wrote: its wire format, signatures and policies are not ours.

mod follower;

use std::path::PathBuf;
use std::time::Instant;

use follower::{Follower, settings};
use peers::{MOTO, Moto};
use smartgroups_aws::{Eks, Endpoints, Identity, Issuer, Kind, Role, Settings};

const REGION: &str = "eu-central-1";
const POLICY: &str = include_str!("../iam/discovery-policy.json");
const OTHER_ACCOUNT: &str = "444455556666";

/// What stands in an element, the first one of its name.
fn text<'a>(xml: &'a str, element: &str) -> &'a str {
    let (_, rest) =
        xml.split_once(&format!("<{element}>")).unwrap_or_else(|| panic!("{element}: {xml}"));
    rest.split_once("</").unwrap().0
}

/// Who builds, in some account.
struct Builder<'a> {
    moto: &'a Moto,
    key: &'a str,
}

impl Builder<'_> {
    fn ec2(&self, action: &str, parameters: &[(&str, &str)]) -> String {
        self.moto.act(self.key, "ec2", REGION, action, parameters).unwrap()
    }

    fn tag(&self, id: &str, tags: &[(&str, &str)]) {
        for (key, value) in tags {
            let parameters = [("ResourceId.1", id), ("Tag.1.Key", *key), ("Tag.1.Value", *value)];
            self.ec2("CreateTags", &parameters);
        }
    }

    /// A VPC with two prefixes, a subnet and a machine; their ids.
    fn network(&self) -> [String; 3] {
        let made = self.ec2("CreateVpc", &[("CidrBlock", "10.7.0.0/16")]);
        let vpc = text(&made, "vpcId").to_owned();
        let more = [("VpcId", vpc.as_str()), ("CidrBlock", "10.8.0.0/16")];
        self.ec2("AssociateVpcCidrBlock", &more);
        let made =
            self.ec2("CreateSubnet", &[("VpcId", vpc.as_str()), ("CidrBlock", "10.7.1.0/24")]);
        let subnet = text(&made, "subnetId").to_owned();
        let wanted = [
            ("ImageId", "ami-12c6146b"),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("SubnetId", subnet.as_str()),
            ("PrivateIpAddress", "10.7.1.9"),
        ];
        let instance = text(&self.ec2("RunInstances", &wanted), "instanceId").to_owned();
        self.tag(&instance, &[("Name", "web"), ("team", "payments")]);
        [vpc, subnet, instance]
    }
}

/// A user with this policy, in the account of the keys; where its keys are.
fn user(moto: &Moto, name: &str, policy: &str) -> PathBuf {
    let iam = |action: &str, parameters: &[(&str, &str)]| {
        moto.act("test", "iam", "us-east-1", action, parameters).unwrap()
    };
    iam("CreateUser", &[("UserName", name)]);
    let allowed = [("UserName", name), ("PolicyName", "p"), ("PolicyDocument", policy)];
    iam("PutUserPolicy", &allowed);
    let keys = iam("CreateAccessKey", &[("UserName", name)]);
    moto.credentials_file(name, text(&keys, "AccessKeyId"), text(&keys, "SecretAccessKey")).unwrap()
}

fn at(moto: &Moto) -> Endpoints {
    Endpoints { ec2: Some(moto.url()), sts: Some(moto.url()) }
}

fn followed(moto: &Moto, vpc: &str, identity: Identity) -> Settings {
    // Every account of moto has a VPC to begin with.
    Settings { vpcs: vec![vpc.to_owned()], ..settings("prod", &[REGION], identity, at(moto)) }
}

fn by(credentials_file: PathBuf) -> Identity {
    Identity { credentials_file: Some(credentials_file), role: None }
}

#[tokio::test]
async fn the_shipped_policy_is_enough_to_know_everything() {
    peers::require!(MOTO);
    let moto = Moto::start().await.unwrap();
    let builder = Builder { moto: &moto, key: "test" };
    let [vpc, subnet, instance] = builder.network();
    let made = builder.ec2("CreateTransitGateway", &[("Description", "hub")]);
    let gateway = text(&made, "transitGatewayId").to_owned();
    let wanted = [
        ("TransitGatewayId", gateway.as_str()),
        ("VpcId", vpc.as_str()),
        ("SubnetIds.1", subnet.as_str()),
    ];
    let made = builder.ec2("CreateTransitGatewayVpcAttachment", &wanted);
    let attachment = text(&made, "transitGatewayAttachmentId").to_owned();
    let made = builder.ec2("DescribeTransitGatewayRouteTables", &[]);
    let table = text(&made, "transitGatewayRouteTableId").to_owned();
    let wanted = [
        ("TransitGatewayRouteTableId", table.as_str()),
        ("DestinationCidrBlock", "10.7.0.0/16"),
        ("TransitGatewayAttachmentId", attachment.as_str()),
    ];
    builder.ec2("CreateTransitGatewayRoute", &wanted);
    let other =
        text(&builder.ec2("CreateVpc", &[("CidrBlock", "10.9.0.0/16")]), "vpcId").to_owned();
    builder.ec2("CreateVpcPeeringConnection", &[("VpcId", &vpc), ("PeerVpcId", &other)]);
    let credentials = user(&moto, "looks", POLICY);
    moto.enforce().unwrap();

    let mut follower = Follower::new(followed(&moto, &vpc, by(credentials)));
    follower
        .until("all is known", |it| it.synced && it.kind(REGION, Kind::Route).objects == 1)
        .await;
    follower
        .until("AWS says who it is", |it| it.status().id.as_deref() == Some(Moto::ACCOUNT))
        .await;
    let status = follower.status();
    assert_eq!(status.degraded(Instant::now()).count(), 0, "{status:#?}");
    let start = format!("aws:prod/{REGION}");
    let vm = &follower.endpoints[&format!("{start}/{instance}")];
    assert_eq!(*vm.addresses, ["10.7.1.9/32".parse().unwrap()], "private, without a public one");
    assert_eq!((vm.given_name.as_deref(), vm.labels.get("team")), (Some("web"), Some("payments")));
    assert_eq!((vm.account.as_deref(), vm.region.as_deref()), (Some(Moto::ACCOUNT), Some(REGION)));
    assert!(vm.zone.as_deref().is_some_and(|zone| zone.starts_with(REGION)), "{vm:?}");
    let known = &follower.endpoints[&format!("{start}/{vpc}")];
    let both = ["10.7.0.0/16", "10.8.0.0/16"].map(|prefix| prefix.parse().unwrap());
    assert_eq!(*known.addresses, both);
    let known = &follower.endpoints[&format!("{start}/{subnet}")];
    assert_eq!(*known.addresses, ["10.7.1.0/24".parse().unwrap()]);
    let facts = follower.account().facts().remove(REGION).unwrap();
    let route = &facts.routes[&*table][0];
    assert_eq!(route.to, Some("10.7.0.0/16".parse().unwrap()));
    assert_eq!(route.by[0].attachment.as_deref(), Some(&*attachment));
    assert_eq!(facts.gateways[0].owner.as_deref(), Some(Moto::ACCOUNT));
    assert_eq!(facts.attachments[0].resource.as_deref(), Some(&*vpc));
    assert_eq!(facts.peerings[0].accepter.vpc.as_deref(), Some(&*other));
}

#[tokio::test]
async fn each_action_that_a_policy_leaves_out_is_named_and_costs_its_kind_alone() {
    peers::require!(MOTO);
    let moto = Moto::start().await.unwrap();
    let [vpc, _, instance] = Builder { moto: &moto, key: "test" }.network();
    let without: Vec<(Kind, PathBuf)> = [Kind::Subnet, Kind::Instance, Kind::Peering]
        .into_iter()
        .map(|kind| {
            let policy = POLICY.replace(&format!("\"{}\",", kind.action()), "");
            assert_ne!(policy, POLICY);
            (kind, user(&moto, &kind.action().replace(':', "-"), &policy))
        })
        .collect();
    moto.enforce().unwrap();
    for (kind, credentials) in without {
        let mut follower = Follower::new(followed(&moto, &vpc, by(credentials)));
        let others = Kind::ALL.into_iter().filter(|one| *one != kind);
        for other in others {
            follower.until("the others are known", |it| it.kind(REGION, other).known).await;
        }
        follower.until("it is refused", |it| !it.error(REGION, kind).is_empty()).await;
        let error = follower.error(REGION, kind);
        assert!(error.starts_with(&format!("{} is refused (", kind.action())), "{error}");
        let has = |id: &str| follower.names().iter().any(|name| name.ends_with(id));
        assert_eq!(has(&instance), kind != Kind::Instance, "{kind}: {:?}", follower.names());
        assert_eq!(follower.status().degraded(Instant::now()).count(), 1, "{kind}");
    }
}

#[tokio::test]
async fn a_wrong_key_is_said_without_the_key() {
    peers::require!(MOTO);
    let moto = Moto::start().await.unwrap();
    let keys = user(&moto, "looks", POLICY);
    let text = std::fs::read_to_string(&keys).unwrap();
    let secret = text.lines().last().unwrap().rsplit(' ').next().unwrap();
    std::fs::write(&keys, text.replace(secret, "not-the-secret")).unwrap();
    moto.enforce().unwrap();
    let mut follower = Follower::new(followed(&moto, "vpc-1", by(keys)));
    follower.until("it is refused", |it| !it.error(REGION, Kind::Vpc).is_empty()).await;
    let told = format!("{:?}", follower.status());
    assert!(told.contains("AuthFailure") || told.contains("SignatureDoesNotMatch"), "{told}");
    assert!(!told.contains("not-the-secret") && !follower.synced, "{told}");
}

#[tokio::test]
async fn a_role_leads_into_its_account_and_into_no_other() {
    peers::require!(MOTO);
    let moto = Moto::start().await.unwrap();
    let credentials = moto.credentials_file("base", "test", "test").unwrap();
    let arn = format!("arn:aws:iam::{OTHER_ACCOUNT}:role/sluice-discovery");
    let wanted = [("RoleArn", arn.as_str()), ("RoleSessionName", "builder")];
    let session = moto.act("test", "sts", REGION, "AssumeRole", &wanted).unwrap();
    let key = text(&session, "AccessKeyId");
    let here = Builder { moto: &moto, key: "test" }.network();
    let there = Builder { moto: &moto, key }.network();
    let role = Some(Role { external_id: Some("x-1".to_owned()), ..Role::new(&arn) });
    let inside = Identity { credentials_file: Some(credentials.clone()), role };
    for (vpc, identity, owner) in
        [(&here[0], by(credentials), Moto::ACCOUNT), (&there[0], inside.clone(), OTHER_ACCOUNT)]
    {
        let mut follower = Follower::new(followed(&moto, vpc, identity));
        follower.until("all is known", |it| it.synced).await;
        assert_eq!(follower.names().len(), 3, "{:?}", follower.names());
        assert!(follower.endpoints.values().all(|one| one.account.as_deref() == Some(owner)));
        follower.until("AWS says who it is", |it| it.status().id.as_deref() == Some(owner)).await;
    }
    let (cluster, region) = ("prod".to_owned(), REGION.to_owned());
    let eks = Eks { cluster, region, identity: inside, sts: Some(moto.url()) };
    let token = Issuer::new(eks).issue().await.unwrap();
    assert!(token.secret.starts_with("k8s-aws-v1."));
}
