//! Addresses that no packet of the gateway can have.

use super::*;

#[test]
fn what_is_non_routable_and_of_no_pod_network_is_a_warning() {
    const DOMAIN: &str = "      domain: prod-eu\n      addresses: [100.64.1.10]";
    const CIDR: &str = "{ cidr: 10.20.0.0/16, domain: fabric }";
    let says = |field: &str, what: &str, right: &str| {
        Some(format!(
            "`{field}` is {what}, non-routable, and without a `domain` it is of the fabric, where no \
             packet has it; expected {right} beside it"
        ))
    };
    let (eu, any) = ("`domain: prod-eu`", "the `domain` of a pod network");
    for (old, new, expected) in [
        (
            DOMAIN,
            "      addresses: [10.0.0.1, 100.64.1.10]",
            says("addresses[1]", "100.64.1.10", eu),
        ),
        (DOMAIN, "      addresses: [100.65.1.10]", says("addresses[0]", "100.65.1.10", any)),
        (DOMAIN, "      addresses: [100.128.0.0]", None), // one past non_routable
        (DOMAIN, "      domain: fabric\n      addresses: [100.64.1.10]", None), // said so
        (CIDR, "{ cidr: 100.64.0.0/16 }", says("cidr", "100.64.0.0/16", eu)),
        (CIDR, "{ cidr: 100.64.0.0/10, type: pod }", says("cidr", "100.64.0.0/10", eu)),
        (CIDR, "{ cidr: 100.0.0.0/8 }", None), // part of it is routable
        (CIDR, "{ cidr: 100.64.0.0/16, domain: prod-us }", None),
    ] {
        let text = edited(old, new);
        let warnings = Config::parse(&text, "f.yaml").unwrap().warnings;
        let said: Vec<&str> = warnings.iter().map(|one| one.message.as_str()).collect();
        assert_eq!(said, Vec::from_iter(expected.as_deref()), "{new}");
        // Where the fabric has such addresses, nothing is lost.
        let carried = text.replace("routes: [10.0.0.0/8]", "carries: [100.64.0.0/10]");
        assert_eq!(Config::parse(&carried, "f.yaml").unwrap().warnings, [], "{new}");
    }
}

#[test]
fn an_address_that_no_packet_has_is_a_warning() {
    const ADDRESS: &str = "addresses: [100.64.1.10]";
    const CIDR: &str = "{ cidr: 10.20.0.0/16, domain: fabric }";
    for (old, new, said) in [
        (
            ADDRESS,
            "addresses: [100.64.1.10, 100.65.0.1]",
            "`addresses[1]` is 100.65.0.1, outside the \
             `sources` of every attachment of domain prod-eu, so its packets are dropped; \
             expected a part of 100.64.0.0/16, or wider `sources`",
        ),
        (ADDRESS, "addresses: [100.64.0.0/10]", ""), // part of it is there
        (
            CIDR,
            "{ cidr: 0.0.0.0/0 }",
            "`cidr` is 0.0.0.0/0, and without a `domain` it is of the \
             fabric: no pod of another domain is in the group; expected `domain: fabric` if that is \
             meant, or in the rules `anywhere`",
        ),
        (CIDR, "{ cidr: 0.0.0.0/0, domain: fabric }", ""),
        (CIDR, "{ cidr: 0.0.0.0/1 }", ""),
        (
            CIDR,
            "{ cidr: \"2001:db8::/32\" }",
            "`cidr` is 2001:db8::/32, and IPv6 is not forwarded \
             yet; expected an IPv4 prefix, without which no packet is from or to it",
        ),
        (
            "domain: fabric }\n  - kind: Rule\n    name: allow",
            "domain: fabric }\n      exclude: [{ cidr: 0.0.0.0/0 }]\n  - kind: Rule\n    name: allow",
            "`cidr` is 0.0.0.0/0, and without a `domain` it is of the fabric: no pod of another domain \
             is excluded; expected `domain: fabric` if that is meant, or the `domain` of those who are",
        ),
        (
            "domain: fabric }\n  - kind: Rule\n    name: allow",
            "domain: fabric }\n      exclude: [{ cidr: \"2001:db8::/32\" }]\n  - kind: Rule\n    name: allow",
            "`cidr` is 2001:db8::/32, and IPv6 is not forwarded yet; expected an IPv4 prefix, without \
             which no packet is kept out",
        ),
    ] {
        let warnings = Config::parse(&edited(old, new), "f.yaml").unwrap().warnings;
        let found: Vec<&str> = warnings.iter().map(|one| one.message.as_str()).collect();
        let expected: Vec<&str> = (!said.is_empty()).then_some(said).into_iter().collect();
        assert_eq!(found, expected, "{new}");
    }
}

#[test]
fn an_endpoint_of_ipv6_alone_is_a_warning() {
    for (addresses, expected) in [
        ("[\"fd00::1\"]", true),
        ("[\"fd00::1\", \"fd00:1::/64\"]", true),
        ("[\"fd00::1\", 100.64.1.10]", false),
    ] {
        let text = edited("addresses: [100.64.1.10]", &format!("addresses: {addresses}"));
        let warnings = Config::parse(&text, "f.yaml").unwrap().warnings;
        let paths: Vec<&str> = warnings.iter().map(|warning| warning.path.as_str()).collect();
        let expected = expected.then_some("documents[0].spec.addresses");
        assert_eq!(paths, Vec::from_iter(expected), "{addresses}");
    }
}
