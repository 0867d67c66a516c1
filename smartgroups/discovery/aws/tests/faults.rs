//! Discovery against an AWS that fails on command.

mod fake;
mod follower;

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use fake::{BASE, Fake, Fault, SECRETS};
use follower::{Follower, settings};
use smartgroups_aws::Kind;

const REGION: &str = "eu-central-1";
const OTHER_REGION: &str = "eu-west-1";
const ACCOUNT: &str = "111122223333";
const OTHER_ACCOUNT: &str = "444455556666";

const VPCS: &str = "DescribeVpcs";
const SUBNETS: &str = "DescribeSubnets";
const INTERFACES: &str = "DescribeNetworkInterfaces";
const INSTANCES: &str = "DescribeInstances";

/// A region with a VPC, a subnet and machines of these numbers.
fn populate(fake: &Fake, account: &str, region: &str, machines: std::ops::Range<u8>) {
    fake.set(account, region, VPCS, vec![fake::vpc("vpc-1", &[("10.0.0.0/16", "associated")])]);
    fake.set(account, region, SUBNETS, vec![fake::subnet("subnet-1", "vpc-1", "10.0.0.0/24")]);
    let interface =
        |n| fake::interface(&format!("eni-{n}"), &format!("i-{n}"), &format!("10.0.0.{n}"));
    fake.set(account, region, INTERFACES, machines.clone().map(interface).collect());
    let instance = |n| fake::instance(&format!("i-{n}"), account, &[("team", "web")]);
    fake.set(account, region, INSTANCES, machines.map(instance).collect());
}

/// A server with two machines in the base account, and somebody who knows them.
async fn followed() -> (Fake, Follower) {
    let fake = Fake::start().await;
    populate(&fake, BASE, REGION, 1..3);
    let mut follower =
        Follower::new(settings("prod", &[REGION], fake.identity(BASE), fake.endpoints()));
    follower.until("all is known", |it| it.synced).await;
    assert_eq!(names(&follower), ["i-1", "i-2", "subnet-1", "vpc-1"]);
    (fake, follower)
}

/// Names without the region.
fn names(follower: &Follower) -> Vec<&str> {
    follower.names().iter().map(|name| name.rsplit('/').next().unwrap()).collect()
}

#[tokio::test]
async fn every_list_is_read_to_its_last_page() {
    let fake = Fake::start().await;
    populate(&fake, BASE, REGION, 1..8);
    fake.page(2);
    let mut follower =
        Follower::new(settings("prod", &[REGION], fake.identity(BASE), fake.endpoints()));
    follower.until("all is known", |it| it.synced).await;
    assert_eq!(names(&follower).len(), 7 + 2, "{:?}", names(&follower));
    let asked = fake.asked();
    let pages = |wanted: &str| asked.iter().filter(|(.., action)| action == wanted).count();
    assert!(pages(INSTANCES) >= 4 && pages(INTERFACES) >= 4, "{asked:?}");
    let vm = &follower.endpoints["aws:prod/eu-central-1/i-7"];
    assert_eq!(*vm.addresses, ["10.0.0.7/32".parse().unwrap()]);
    assert_eq!((vm.account.as_deref(), vm.region.as_deref()), (Some(BASE), Some(REGION)));
    let subnet = &follower.endpoints["aws:prod/eu-central-1/subnet-1"];
    assert_eq!(
        subnet.region.as_deref(),
        Some(REGION),
        "of a Local Zone it is not the zone's start"
    );
    assert_eq!(subnet.zone.as_deref(), Some("eu-central-1-ham-1a"));
}

#[tokio::test]
async fn what_is_throttled_is_asked_again_and_in_the_end_is_said() {
    let fake = Fake::start().await;
    populate(&fake, BASE, REGION, 1..3);
    fake.fault(BASE, REGION, INSTANCES, Fault::Throttled(2));
    let mut follower =
        Follower::new(settings("prod", &[REGION], fake.identity(BASE), fake.endpoints()));
    follower.until("all is known", |it| it.synced).await;
    assert_eq!(follower.kind(REGION, Kind::Instance).failures, 0, "two refusals are not the end");

    fake.fault(BASE, REGION, INSTANCES, Fault::Throttled(u32::MAX));
    let throttled = |it: &Follower| it.error(REGION, Kind::Instance).contains("is throttled");
    follower.until("it is said", throttled).await;
    assert_eq!(
        follower.error(REGION, Kind::Instance),
        "ec2:DescribeInstances is throttled (RequestLimitExceeded), however often it is asked"
    );
    assert_eq!(names(&follower), ["i-1", "i-2", "subnet-1", "vpc-1"], "nothing is lost");
    let asked = fake.asked().into_iter().filter(|(.., action)| action == INSTANCES).count();
    assert!(asked <= 12, "politely: {asked}");
}

#[tokio::test]
async fn what_is_refused_stays_as_it_was_and_all_else_goes_on() {
    for (fault, said) in [
        (Fault::Denied, "ec2:DescribeInstances is refused (UnauthorizedOperation): as told"),
        (Fault::AfterFirstPage, "ec2:DescribeInstances failed (InvalidState): as told"),
        (Fault::CutOff, "the answer to ec2:DescribeInstances is not whole: "),
    ] {
        let (fake, mut follower) = followed().await;
        let before = Instant::now();
        fake.page(1);
        fake.fault(BASE, REGION, INSTANCES, fault);
        // Of its two machines one is gone, which nobody may see while instances are not told, and a
        // subnet has come.
        let remains = fake::instance("i-1", BASE, &[("team", "web")]);
        fake.set(BASE, REGION, INSTANCES, vec![remains, "<ownerId>o</ownerId>".to_owned()]);
        let subnets = ["subnet-1", "subnet-2"].map(|id| fake::subnet(id, "vpc-1", "10.0.1.0/24"));
        fake.set(BASE, REGION, SUBNETS, subnets.into());
        follower.until("the subnet is known", |it| names(it).contains(&"subnet-2")).await;
        let failed = |it: &Follower| it.kind(REGION, Kind::Instance).failures >= 2;
        follower.until("the failure is said", failed).await;
        let status = follower.kind(REGION, Kind::Instance);
        let error = status.error.clone().unwrap();
        assert!(error.starts_with(said), "{fault:?}: {error}");
        assert_eq!(names(&follower), ["i-1", "i-2", "subnet-1", "subnet-2", "vpc-1"], "{fault:?}");
        let now = Instant::now();
        assert!(
            status.known && status.since >= before && status.staleness(now) > Some(Duration::ZERO)
        );
        let all = follower.status();
        let degraded: Vec<Kind> = all.degraded(now).map(|(_, kind)| kind.kind).collect();
        assert_eq!(degraded, [Kind::Instance], "exactly that");
        assert!(all.staleness(now) >= status.staleness(now), "the account is as old as that");
        fake.heal();
        follower.until("it recovers", |it| it.kind(REGION, Kind::Instance).error.is_none()).await;
        let gone = |it: &Follower| !it.endpoints.contains_key("aws:prod/eu-central-1/i-2");
        follower.until("what is gone is gone", gone).await;
    }
}

#[tokio::test]
async fn accounts_are_entered_by_their_roles_and_fail_each_for_itself() {
    let fake = Fake::start().await;
    for account in [ACCOUNT, OTHER_ACCOUNT] {
        populate(&fake, account, REGION, 1..2);
        fake.ask_for(account, SECRETS[3]);
    }
    // Sessions so short that they have to be begun again and again.
    fake.sessions_live(Duration::from_secs(12));
    let follow = |name, account| {
        Follower::new(settings(name, &[REGION], fake.identity(account), fake.endpoints()))
    };
    let (mut one, mut other) = (follow("one", ACCOUNT), follow("other", OTHER_ACCOUNT));
    one.until("one is known", |it| it.synced).await;
    other.until("the other is known", |it| it.synced).await;
    let identified = |it: &Follower| it.status().id.is_some();
    one.until("AWS says which it is", identified).await;
    assert_eq!(one.status().id.as_deref(), Some(ACCOUNT));
    assert_eq!(one.endpoints["aws:one/eu-central-1/i-1"].account.as_deref(), Some(ACCOUNT));
    assert_eq!(
        other.endpoints["aws:other/eu-central-1/i-1"].account.as_deref(),
        Some(OTHER_ACCOUNT)
    );
    assert_eq!(fake.session_names(), ["gw-test"]);
    let expires = |it: &Follower| it.status().credentials_expire.is_some();
    one.until("it is said until when", expires).await;
    let left = one.status().credentials_expire.unwrap().duration_since(SystemTime::now());
    assert!(left.is_ok_and(|left| left <= Duration::from_secs(12)));

    let before = fake.sessions(ACCOUNT);
    one.until("a session is begun before the last one ends", |_| {
        fake.sessions(ACCOUNT) > before + 1
    })
    .await;
    assert_eq!(one.kind(REGION, Kind::Vpc).failures, 0, "nothing was asked with an old one");

    let by_base: BTreeSet<String> = fake
        .asked()
        .into_iter()
        .filter(|(account, ..)| account == BASE)
        .map(|(_, service, action)| format!("{service}:{action}"))
        .collect();
    let allowed: serde_json::Value =
        serde_json::from_str(include_str!("../iam/gateway-policy.json")).unwrap();
    let allowed = allowed["Statement"][0]["Action"].as_str().unwrap();
    assert_eq!(
        by_base,
        BTreeSet::from([allowed.to_owned()]),
        "the base becomes others, and no more"
    );

    fake.trust(OTHER_ACCOUNT, false);
    let refused = |it: &Follower| it.error(REGION, Kind::Vpc).contains("AccessDenied");
    other.until("the role is refused", refused).await;
    assert_eq!(
        other.error(REGION, Kind::Vpc),
        "there are no credentials: AWS refused them (AccessDenied): not trusted"
    );
    assert_eq!(names(&other), ["i-1", "subnet-1", "vpc-1"], "nothing is lost");
    assert!(one.status().degraded(Instant::now()).next().is_none(), "{:#?}", one.status());
    let told = format!("{:?} {:?}", other.status(), other.account());
    for secret in SECRETS {
        assert!(!told.contains(secret), "{told}");
    }
    fake.trust(OTHER_ACCOUNT, true);
    other.until("it is trusted again", |it| it.error(REGION, Kind::Vpc).is_empty()).await;
}

#[tokio::test]
async fn an_external_id_that_does_not_fit_opens_nothing() {
    let fake = Fake::start().await;
    populate(&fake, ACCOUNT, REGION, 1..2);
    fake.ask_for(ACCOUNT, "another");
    let mut follower =
        Follower::new(settings("prod", &[REGION], fake.identity(ACCOUNT), fake.endpoints()));
    let said =
        |it: &Follower| it.status().unidentified.is_some_and(|why| why.contains("not trusted"));
    follower.until("it is said", said).await;
    assert!(names(&follower).is_empty() && !follower.synced);
    let told = format!("{:?}", follower.status());
    assert!(!told.contains(SECRETS[3]), "{told}");
}

#[tokio::test]
async fn a_region_that_does_not_answer_holds_up_no_other() {
    let fake = Fake::start().await;
    populate(&fake, BASE, REGION, 1..2);
    populate(&fake, BASE, OTHER_REGION, 2..3);
    for action in [VPCS, SUBNETS, INTERFACES, INSTANCES] {
        fake.fault(BASE, REGION, action, Fault::Silent);
    }
    let regions = [REGION, OTHER_REGION];
    let mut follower =
        Follower::new(settings("prod", &regions, fake.identity(BASE), fake.endpoints()));
    follower.until("the other is known", |it| names(it) == ["i-2", "subnet-1", "vpc-1"]).await;
    populate(&fake, BASE, OTHER_REGION, 2..4);
    follower.until("and followed", |it| names(it).contains(&"i-3")).await;
    assert!(!follower.synced && follower.status().staleness(Instant::now()).is_none());
    assert!(!follower.kind(REGION, Kind::Vpc).known);
}

#[tokio::test]
async fn only_the_vpcs_that_are_named_are_looked_at() {
    let fake = Fake::start().await;
    populate(&fake, BASE, REGION, 1..2);
    let vpcs = ["vpc-1", "vpc-2"].map(|id| fake::vpc(id, &[("10.0.0.0/16", "associated")]));
    fake.set(BASE, REGION, VPCS, vpcs.into());
    let all = settings("prod", &[REGION], fake.identity(BASE), fake.endpoints());
    let mut follower =
        Follower::new(smartgroups_aws::Settings { vpcs: vec!["vpc-1".to_owned()], ..all });
    follower.until("all is known", |it| it.synced).await;
    assert_eq!(names(&follower), ["i-1", "subnet-1", "vpc-1"]);
}

#[tokio::test]
async fn a_prefix_that_is_being_taken_away_is_nobodys() {
    let fake = Fake::start().await;
    let cidrs = [("10.0.0.0/16", "associated"), ("10.1.0.0/16", "disassociating")];
    fake.set(BASE, REGION, VPCS, vec![fake::vpc("vpc-1", &cidrs)]);
    let mut follower =
        Follower::new(settings("prod", &[REGION], fake.identity(BASE), fake.endpoints()));
    follower.until("all is known", |it| it.synced).await;
    let vpc = &follower.endpoints["aws:prod/eu-central-1/vpc-1"];
    assert_eq!(*vpc.addresses, ["10.0.0.0/16".parse().unwrap()]);
}

/// A hub with two tables of routes, and what others have attached to it.
fn with_transit_gateway(fake: &Fake, account: &str) {
    let set = |action: &str, items: Vec<String>| fake.set(account, REGION, action, items);
    set(
        "DescribeVpcPeeringConnections",
        vec![
            "<vpcPeeringConnectionId>pcx-1</vpcPeeringConnectionId><status><code>active</code></status>\
             <requesterVpcInfo><vpcId>vpc-1</vpcId><cidrBlock>10.0.0.0/16</cidrBlock><cidrBlockSet>\
             <item><cidrBlock>10.0.0.0/16</cidrBlock></item><item><cidrBlock>10.9.0.0/16</cidrBlock></item>\
             </cidrBlockSet></requesterVpcInfo><accepterVpcInfo><vpcId>vpc-7</vpcId>\
             <region>us-east-1</region></accepterVpcInfo>"
                .to_owned(),
        ],
    );
    set(
        "DescribeTransitGateways",
        vec![format!(
            "<transitGatewayId>tgw-1</transitGatewayId><ownerId>{account}</ownerId><state>available</state>"
        )],
    );
    let attachment = |id: &str, owner: &str| {
        format!(
            "<transitGatewayAttachmentId>{id}</transitGatewayAttachmentId>\
             <transitGatewayId>tgw-1</transitGatewayId><resourceOwnerId>{owner}</resourceOwnerId>\
             <resourceType>vpc</resourceType><resourceId>vpc-9</resourceId><state>available</state>\
             <association><transitGatewayRouteTableId>rtb-1</transitGatewayRouteTableId></association>"
        )
    };
    let attachments = vec![attachment("att-2", OTHER_ACCOUNT), attachment("att-1", account)];
    set("DescribeTransitGatewayAttachments", attachments);
    set(
        "DescribeTransitGatewayPeeringAttachments",
        vec![
            "<transitGatewayAttachmentId>att-3</transitGatewayAttachmentId><requesterTgwInfo>\
             <transitGatewayId>tgw-1</transitGatewayId><region>eu-central-1</region></requesterTgwInfo>\
             <accepterTgwInfo><transitGatewayId>tgw-2</transitGatewayId><region>us-east-1</region>\
             </accepterTgwInfo><state>available</state>"
                .to_owned(),
        ],
    );
    let table = |id: &str| {
        format!(
            "<transitGatewayRouteTableId>{id}</transitGatewayRouteTableId>\
             <transitGatewayId>tgw-1</transitGatewayId><state>available</state>"
        )
    };
    set("DescribeTransitGatewayRouteTables", vec![table("rtb-1"), table("rtb-2")]);
    let routes = (0..5).map(|n| fake::route(&format!("10.{n}.0.0/16"), "att-2")).collect();
    set("SearchTransitGatewayRoutes/rtb-1", routes);
    set("SearchTransitGatewayRoutes/rtb-2", vec![fake::route("0.0.0.0/0", "att-1")]);
}

#[tokio::test]
async fn transit_gateways_are_known_with_what_others_attached_and_every_route() {
    let fake = Fake::start().await;
    populate(&fake, ACCOUNT, REGION, 1..2);
    with_transit_gateway(&fake, ACCOUNT);
    fake.page(2);
    let mut follower =
        Follower::new(settings("hub", &[REGION], fake.identity(ACCOUNT), fake.endpoints()));
    let routes = |it: &Follower| it.kind(REGION, Kind::Route).objects;
    follower.until("all routes are known", |it| routes(it) == 6).await;
    let facts = follower.account().facts().remove(REGION).unwrap();
    assert_eq!(facts.gateways[0].owner.as_deref(), Some(ACCOUNT));
    let owners: Vec<_> =
        facts.attachments.iter().map(|one| (&*one.id, one.resource_owner.as_deref())).collect();
    assert_eq!(owners, [("att-1", Some(ACCOUNT)), ("att-2", Some(OTHER_ACCOUNT))]);
    assert_eq!(facts.attachments[0].route_table.as_deref(), Some("rtb-1"));
    assert_eq!(facts.peering_attachments[0].accepter.region.as_deref(), Some("us-east-1"));
    let peering = &facts.peerings[0];
    assert_eq!((&*peering.state, peering.requester.cidrs.len()), ("active", 2));
    assert_eq!(peering.accepter.region.as_deref(), Some("us-east-1"));
    let first = &facts.routes["rtb-1"][0];
    assert_eq!(first.to, Some("10.0.0.0/16".parse().unwrap()));
    assert_eq!((&*first.state, first.by[0].attachment.as_deref()), ("active", Some("att-2")));
    assert!(
        follower.names().iter().all(|name| !name.contains("tgw") && !name.contains("att-")),
        "ways are nobody's identity: {:?}",
        follower.names()
    );

    // One table is refused, and the other has lost routes.
    fake.fault(ACCOUNT, REGION, "SearchTransitGatewayRoutes/rtb-1", Fault::Denied);
    fake.set(ACCOUNT, REGION, "SearchTransitGatewayRoutes/rtb-2", vec![]);
    follower.until("the other is followed", |it| routes(it) == 5).await;
    let refused = "ec2:SearchTransitGatewayRoutes is refused (UnauthorizedOperation): as told";
    follower.until("it is said", |it| it.error(REGION, Kind::Route) == refused).await;
    assert!(follower.synced && follower.status().staleness(Instant::now()).is_some());
}

#[tokio::test]
async fn what_is_asked_is_what_the_shipped_policy_allows_and_nothing_else() {
    let fake = Fake::start().await;
    populate(&fake, BASE, REGION, 1..2);
    with_transit_gateway(&fake, BASE);
    let mut follower =
        Follower::new(settings("prod", &[REGION], fake.identity(BASE), fake.endpoints()));
    follower.until("all is known", |it| it.synced && it.kind(REGION, Kind::Route).known).await;
    follower.until("so is who this is", |it| it.status().id.is_some()).await;
    let asked: BTreeSet<String> = fake
        .asked()
        .into_iter()
        .map(|(_, service, action)| match service.as_str() {
            "sts" => format!("sts:{action}"),
            _ => format!("ec2:{action}"),
        })
        .collect();
    let allowed = |policy: &str| {
        let policy: serde_json::Value = serde_json::from_str(policy).unwrap();
        let actions = policy["Statement"][0]["Action"].clone();
        serde_json::from_value::<BTreeSet<String>>(actions).unwrap()
    };
    let mut expected = allowed(include_str!("../iam/discovery-policy.json"));
    let kinds: BTreeSet<String> = Kind::ALL.map(|kind| kind.action().to_owned()).into();
    assert_eq!(kinds, expected, "the names in errors are those of the policy");
    // Everybody may ask that; a policy can neither allow nor forbid it.
    expected.insert("sts:GetCallerIdentity".to_owned());
    assert_eq!(asked, expected);
}
