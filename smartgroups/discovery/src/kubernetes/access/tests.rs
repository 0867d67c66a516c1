use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::super::issuer::IssuedToken;
use super::*;

const SECRET: &str = "c2VjcmV0";

/// A file of one test; removed when dropped.
struct File(PathBuf);

impl File {
    fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-{}-{name}", std::process::id()));
        fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

async fn error_of(access: Access) -> String {
    let connector = Connector::new(access);
    let error = connector.client().await.map(drop).expect_err("there is no client");
    let source = error.source().map(ToString::to_string).unwrap_or_default();
    format!("{error} {source} {error:?} {connector:?}")
}

fn kubeconfig(path: &File) -> Access {
    Access::Kubeconfig { path: path.0.clone(), context: None }
}

fn with_user(user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:1'}}}}]\n\
         users: [{{name: u, user: {user}}}]\n"
    )
}

#[tokio::test]
async fn what_is_wrong_with_an_access_is_said_without_what_is_secret() {
    let broken = File::new("broken", &format!("users:\n- user: {{token: {SECRET}\n  x: [\n"));
    let typed = File::new("typed", &with_user(&format!("{{token: [{SECRET}]}}")));
    let plugin = |script: &str| {
        with_user(&format!(
            "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: sh, \
             args: ['-c', \"{script}\"], interactiveMode: Never}}}}"
        ))
    };
    let failing = File::new("failing", &plugin(&format!("echo {SECRET}; exit 3")));
    let babbling = File::new("babbling", &plugin(&format!("echo '[{SECRET}'")));
    for (access, expected) in [
        (kubeconfig(&broken), "it is no kubeconfig in YAML"),
        (kubeconfig(&typed), "it is no kubeconfig in YAML"),
        (kubeconfig(&failing), "the plugin failed: exit status: 3"),
        (kubeconfig(&babbling), "the plugin's answer cannot be read"),
        (
            Access::Kubeconfig { path: "/no/such/file".into(), context: None },
            "cannot read /no/such/file",
        ),
        (
            Access::Token {
                server: "host:6443".into(),
                token_file: broken.0.clone(),
                ca_file: None,
            },
            "`host:6443` is no URL of a server",
        ),
        (
            Access::Token {
                server: "https://127.0.0.1:1".into(),
                token_file: "/no/such/token".into(),
                ca_file: None,
            },
            "cannot read /no/such/token",
        ),
    ] {
        let error = error_of(access).await;
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!error.contains(SECRET), "{error}");
    }
}

#[tokio::test]
async fn a_client_is_made_once_and_says_until_when_its_token_is_good() {
    // {"exp":1800000000}
    let token = File::new("token", "e30.eyJleHAiOjE4MDAwMDAwMDB9.sig");
    let connector = Connector::new(Access::Token {
        server: "https://127.0.0.1:1".into(),
        token_file: token.0.clone(),
        ca_file: None,
    });
    assert_eq!(connector.expiry().await, None, "nobody asked yet");
    let (first, _) = connector.client().await.unwrap();
    connector.renew(first).await;
    let (second, _) = connector.client().await.unwrap();
    assert_eq!(first, second, "one that was just made is not made anew");
    let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    assert_eq!(connector.expiry().await, Some(expected));
}

/// Issues `token-1`, `token-2`, .. that live for some time, unless it is told to refuse.
fn issuer(life: Duration, refuses: &Arc<AtomicBool>, issued: &Arc<AtomicU32>) -> Issuer {
    let (refuses, issued) = (Arc::clone(refuses), Arc::clone(issued));
    Issuer::new("test", move || {
        let (refuses, issued) = (Arc::clone(&refuses), Arc::clone(&issued));
        async move {
            if refuses.load(Ordering::Relaxed) {
                return Err("the role may not be assumed".into());
            }
            let number = issued.fetch_add(1, Ordering::Relaxed) + 1;
            Ok(IssuedToken { secret: format!("{SECRET}-{number}"), expires: START + life })
        }
    })
}

const START: SystemTime = SystemTime::UNIX_EPOCH;
const LIFE: Duration = Duration::from_secs(900);

#[tokio::test]
async fn a_token_is_renewed_before_it_ends_and_used_to_its_end_when_it_cannot_be() {
    let (refuses, issued) = (Arc::default(), Arc::default());
    let connector = Connector::new(Access::Issued {
        server: "https://127.0.0.1:1".into(),
        issuer: issuer(LIFE, &refuses, &issued),
        ca_file: None,
    });
    let ask = async |seconds: u64| {
        let client = connector.client_at(START + Duration::from_secs(seconds)).await;
        client.map(|(number, _)| number).map_err(|error| plainly(&error))
    };
    for (seconds, expected) in [
        (0, 1),
        (599, 1), // two thirds of its life
        (600, 2),
        (799, 2), // of that, which ends with the first one
    ] {
        assert_eq!(ask(seconds).await, Ok(expected), "after {seconds} s");
    }
    assert_eq!(connector.expiry().await, Some(START + LIFE));
    refuses.store(true, Ordering::Relaxed);
    for (seconds, expected) in
        [(899, Ok(2)), (900, Err("no token is issued: the role may not be assumed".to_owned()))]
    {
        assert_eq!(ask(seconds).await, expected, "after {seconds} s");
    }
    refuses.store(false, Ordering::Relaxed);
    assert_eq!(ask(901).await, Ok(3));
    assert_eq!(issued.load(Ordering::Relaxed), 3);
    let told = format!("{connector:?} {:?}", connector.access);
    assert!(!told.contains(SECRET), "{told}");
}

#[tokio::test]
async fn nobody_is_asked_for_a_token_at_every_turn_while_he_refuses() {
    let (refuses, issued) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let asked = Arc::new(AtomicU32::new(0));
    let inner = issuer(LIFE, &refuses, &issued);
    let counted = Arc::clone(&asked);
    let issuer = Issuer::new("counted", move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let inner = inner.clone();
        async move { inner.issue().await }
    });
    let server = "https://127.0.0.1:1".to_owned();
    let connector = Connector::new(Access::Issued { server, issuer, ca_file: None });
    let at = |seconds| START + Duration::from_secs(seconds);
    connector.client_at(at(0)).await.unwrap();
    refuses.store(true, Ordering::Relaxed);
    for seconds in 700..730 {
        connector.client_at(at(seconds)).await.unwrap();
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1 + 2, "every {AFTER_REFUSAL:?}");
}
