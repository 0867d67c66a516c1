use super::*;

/// 2027-01-15 08:00:00 UTC.
const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn credentials(session: Option<&str>, expiry: Option<SystemTime>) -> Credentials {
    let (key, secret) = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
    Credentials::new(key, secret, session.map(ToOwned::to_owned), expiry, "test")
}

/// The question in a token, its parameters sorted.
fn question(token: &str) -> (String, Vec<String>) {
    let text = token.strip_prefix("k8s-aws-v1.").unwrap();
    assert!(
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)),
        "{text}"
    );
    let padding = "=".repeat((4 - text.len() % 4) % 4);
    let text = text.replace('-', "+").replace('_', "/") + &padding;
    let url = String::from_utf8(aws_smithy_types::base64::decode(text).unwrap()).unwrap();
    sorted(&url)
}

fn sorted(url: &str) -> (String, Vec<String>) {
    let (host, query) = url.split_once('?').unwrap();
    let mut query: Vec<String> = query.split('&').map(ToOwned::to_owned).collect();
    query.sort_unstable();
    (host.to_owned(), query)
}

/// What botocore 1.44.8 makes of the same (`SigV4QueryAuth`, 60 s, header `x-k8s-aws-id: prod-eu`).
#[test]
fn a_token_is_the_one_that_others_make_of_the_same() {
    let with_key = "https://sts.eu-central-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15\
        &X-Amz-Algorithm=AWS4-HMAC-SHA256\
        &X-Amz-Credential=AKIDEXAMPLE%2F20270115%2Feu-central-1%2Fsts%2Faws4_request\
        &X-Amz-Date=20270115T080000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host%3Bx-k8s-aws-id\
        &X-Amz-Signature=1c0143eb89dff9aaca56112c532a4eca32ac66b4016e5b7fda4f0070800078b7";
    let with_session = "https://sts.eu-central-1.amazonaws.com/?Action=GetCallerIdentity\
        &Version=2011-06-15&X-Amz-Algorithm=AWS4-HMAC-SHA256\
        &X-Amz-Credential=AKIDEXAMPLE%2F20270115%2Feu-central-1%2Fsts%2Faws4_request\
        &X-Amz-Date=20270115T080000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host%3Bx-k8s-aws-id\
        &X-Amz-Security-Token=session%2Ftoken%2Bwith%3Dodd\
        &X-Amz-Signature=1dcfb82ec89742db494beacf5104cb6242c2999d2860eaeb1df4b445651fbb51";
    for (session, expected) in [(None, with_key), (Some("session/token+with=odd"), with_session)] {
        let token = token("prod-eu", "eu-central-1", credentials(session, None), at(NOW)).unwrap();
        assert_eq!(question(&token.secret), sorted(expected), "{session:?}");
        let told = format!("{token:?}");
        assert!(!told.contains("k8s-aws"), "{told}");
    }
}

#[test]
fn a_token_lives_a_quarter_of_an_hour_unless_who_signed_it_ends_before() {
    for (credentials_end, expected) in
        [(None, NOW + 900), (Some(NOW + 901), NOW + 900), (Some(NOW + 899), NOW + 899)]
    {
        let credentials = credentials(None, credentials_end.map(at));
        let token = token("prod-eu", "eu-central-1", credentials, at(NOW)).unwrap();
        assert_eq!(token.expires, at(expected), "{credentials_end:?}");
    }
}

#[test]
fn sts_is_where_api_servers_look_for_it() {
    for (region, expected) in [
        ("eu-central-1", "sts.eu-central-1.amazonaws.com"),
        ("us-gov-west-1", "sts.us-gov-west-1.amazonaws.com"),
        ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn"),
    ] {
        assert_eq!(sts_host(region), expected);
    }
}
