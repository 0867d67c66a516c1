//! Machines of an AWS that others wrote are who their tags say: the daemon as it is, in a namespace that
//! vanishes with the test.

mod namespace;

use namespace::{can_run, run, skip};

/// Each line that is printed says what became of it.
const TAGGED: &str = r#"
moto=$3
aws=
trap 'for each in $daemon $aws; do kill -9 $each 2>/dev/null || true; done' EXIT
begin_aws() {
    "$moto" -H 127.0.0.1 -p 5000 >"$directory/moto" 2>&1 &
    aws=$!
    for _ in $(seq 300); do
        if curl -s http://127.0.0.1:5000/moto-api/ >/dev/null; then return; fi
        sleep 0.1
    done
    exit 1
}
ec2() {
    scope=test/20260101/eu-central-1/ec2/aws4_request
    curl -s -d "Action=$1&Version=2016-11-15$2" http://127.0.0.1:5000/ \
        -H "Authorization: AWS4-HMAC-SHA256 Credential=$scope, SignedHeaders=host, Signature=none"
}
element() { tr -d '\n' | sed "s|.*<$1>\([^<]*\)</$1>.*|\1|"; }
tag() { ec2 CreateTags "&ResourceId.1=$instance&Tag.1.Key=$1&Tag.1.Value=$2" >/dev/null; }
reaches() { if ip netns exec pod ping -c 1 -W 1 203.0.113.9 >/dev/null; then echo yes; else echo no; fi; }
# What becomes of it, as soon as it is what is expected.
soon() {
    for _ in $(seq 60); do
        [ "$(reaches)" != "$1" ] || break
        sleep 0.2
    done
    reaches
}
# The same of a metric that is to be more than none.
metric() { curl -s http://127.0.0.1:9464/metrics | sed -n "s/^$1{[^}]*} //p"; }

site 1
begin_aws
vpc=$(ec2 CreateVpc '&CidrBlock=100.64.0.0/16' | element vpcId)
subnet=$(ec2 CreateSubnet "&VpcId=$vpc&CidrBlock=100.64.1.0/24" | element subnetId)
image='&ImageId=ami-12c6146b&MinCount=1&MaxCount=1'
instance=$(ec2 RunInstances "$image&SubnetId=$subnet&PrivateIpAddress=100.64.1.10" | element instanceId)
tag Name web
printf '[default]\naws_access_key_id = test\naws_secret_access_key = only-we-know\n' >"$directory/keys"
configure "$POD" "cloud_accounts:
    - name: prod
      regions: [eu-central-1]
      credentials_file: $directory/keys
      endpoints: { ec2: 'http://127.0.0.1:5000', sts: 'http://127.0.0.1:5000' }
      vpcs: [$vpc]
      domains: { $vpc: red }
      interval: 1s"
cat >>"$directory/sluice.yaml" <<END
  - kind: SmartGroup
    name: blocked
    spec: { selectors: [{ type: vm, name: web, account: "123456789012", labels: { team: blocked } }] }
  - kind: Rule
    name: block
    spec: { priority: 1, action: deny, sources: [blocked], destinations: [anywhere] }
END
start env
echo "without the tag: $(reaches)"
echo "endpoints: $(metric sluice_cloud_account_endpoints)"
tag team blocked
echo "with the tag: $(soon no)"
tag team free
echo "with another: $(soon yes)"
tag team blocked
echo "with the tag again: $(soon no)"

kill -9 $aws
for _ in $(seq 300); do
    [ "$(metric sluice_cloud_account_degraded_kinds)" = 0 ] || break
    sleep 0.1
done
echo "nobody answers: $(reaches)"
curl -s --unix-socket "$directory/sluice.sock" http://localhost/v1/status |
    sed 's/.*"cloud_accounts"://' | grep -o 'cannot reach AWS for ec2:[A-Za-z]*' | sort -u | head -n 1
kill $daemon
wait $daemon
env "$program" run --config "$directory/sluice.yaml" 2>>"$directory/said" &
daemon=$!
for _ in $(seq 300); do
    if curl -s http://127.0.0.1:9464/readyz | grep -q 'account `prod` is not known yet'; then break; fi
    sleep 0.1
done
echo "after a restart: $(reaches)"
# Another AWS, which knows of no such machine.
begin_aws
echo "it is gone: $(soon yes)"
! grep only-we-know "$directory/said"
kill $daemon
wait $daemon
"#;

#[test]
fn a_machine_is_who_its_tags_say_and_stays_so_while_nobody_answers() {
    if let Some(why) = peers::missing(&[peers::MOTO]) {
        return skip("tags of a machine", &why);
    }
    if !can_run("tags of a machine", &["curl", "ip", "ping"]) {
        return;
    }
    let moto = peers::MOTO.path();
    let output = run(TAGGED, "accounts", &[moto.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let expected = [
        "without the tag: yes",
        "endpoints: 3",
        "with the tag: no",
        "with another: yes",
        "with the tag again: no",
        "nobody answers: no",
        "cannot reach AWS for ec2:DescribeInstances",
        "after a restart: no",
        "it is gone: yes",
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected, "{output:?}");
}
