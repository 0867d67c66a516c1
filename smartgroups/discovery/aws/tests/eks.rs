//! Tokens for EKS clusters, looked at as an API server and STS do.

mod fake;

use std::time::{Duration, SystemTime};

use fake::{BASE, Fake, SECRETS};
use smartgroups_aws::{Eks, Failure, Issuer, Token};

const REGION: &str = "eu-central-1";
const ACCOUNT: &str = "111122223333";

fn issuer(fake: &Fake, account: &str) -> Issuer {
    Issuer::new(Eks {
        cluster: "prod-eu".to_owned(),
        region: REGION.to_owned(),
        identity: fake.identity(account),
        sts: fake.endpoints().sts.map(|url| url.replace("{region}", REGION)),
    })
}

fn left(token: &Token) -> Duration {
    token.expires.duration_since(SystemTime::now()).unwrap()
}

#[tokio::test]
async fn a_token_says_who_sends_it_and_for_which_cluster_it_is() {
    let fake = Fake::start().await;
    for account in [BASE, ACCOUNT] {
        let token = issuer(&fake, account).issue().await.unwrap();
        assert!(
            left(&token) > Duration::from_secs(890) && left(&token) <= Duration::from_secs(900)
        );
        assert_eq!(fake.token_of(&token.secret, "prod-eu"), Ok(account.to_owned()));
        let elsewhere = fake.token_of(&token.secret, "prod-us");
        assert_eq!(elsewhere, Err("the signature does not fit"), "it is for one cluster alone");
    }
    assert_eq!(fake.sessions(BASE), 0, "the base asks nobody");
}

#[tokio::test]
async fn a_token_of_a_short_session_ends_with_it_and_the_next_is_of_another() {
    let fake = Fake::start().await;
    fake.sessions_live(Duration::from_secs(60));
    let issuer = issuer(&fake, ACCOUNT);
    let first = issuer.issue().await.unwrap();
    assert!(left(&first) <= Duration::from_secs(60), "{:?}", left(&first));
    let second = issuer.issue().await.unwrap();
    assert_eq!(fake.sessions(ACCOUNT), 2);
    assert_eq!(fake.token_of(&second.secret, "prod-eu"), Ok(ACCOUNT.to_owned()));
    assert_eq!(fake.token_of(&first.secret, "prod-eu"), Err("the session is over"));
}

#[tokio::test]
async fn without_a_role_there_is_no_token_and_the_reason_holds_no_secret() {
    let fake = Fake::start().await;
    fake.trust(ACCOUNT, false);
    let issuer = issuer(&fake, ACCOUNT);
    let refused = issuer.issue().await.unwrap_err();
    let expected = "there are no credentials: AWS refused them (AccessDenied): not trusted";
    assert_eq!(refused.to_string(), expected);
    assert!(matches!(refused, Failure::Credentials(_)));
    fake.trust(ACCOUNT, true);
    let token = issuer.issue().await.unwrap();
    let told = format!("{refused:?} {issuer:?} {token:?}");
    for secret in SECRETS {
        assert!(!told.contains(secret), "{told}");
    }
    assert!(!told.contains(&token.secret), "{told}");
}
