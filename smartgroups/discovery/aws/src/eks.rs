//! Tokens for the API servers of EKS clusters.
//!
//! Such a token is a signed question that is never asked here: who am I, as AWS answers it, for this
//! cluster. The API server asks it in our place and believes the answer. It takes a token for a quarter
//! of an hour after it was signed, however long the question itself may be asked.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use tokio::sync::OnceCell;

use crate::credentials::Caller;
use crate::failure::Failure;
use crate::settings::Identity;

/// What tells a token of this kind from all others.
const PREFIX: &str = "k8s-aws-v1.";
/// The header that binds a token to one cluster.
const CLUSTER_HEADER: &str = "x-k8s-aws-id";
/// How long the question may be asked: what `aws eks get-token` says too, and API servers expect.
const QUESTION_LIVES: Duration = Duration::from_secs(60);
/// How long API servers take a token.
const TOKEN_LIVES: Duration = Duration::from_secs(15 * 60);

/// For which cluster tokens are issued, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eks {
    /// The name that the cluster has in EKS.
    pub cluster: String,
    /// Its region.
    pub region: String,
    /// As whom.
    pub identity: Identity,
    /// URL of STS, where a role is assumed, if not where its name leads. Tokens do not depend on it.
    pub sts: Option<String>,
}

/// A token, and until when API servers take it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What is sent. Whoever has it is us.
    pub secret: String,
    /// Until when.
    pub expires: SystemTime,
}

/// Without the secret.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Issues tokens for one cluster.
#[derive(Debug)]
pub struct Issuer {
    eks: Eks,
    caller: OnceCell<Caller>,
}

impl Issuer {
    /// Asks nobody yet.
    pub fn new(eks: Eks) -> Self {
        Self { eks, caller: OnceCell::new() }
    }

    /// A new token.
    ///
    /// # Errors
    ///
    /// There are no credentials, or the role may not be assumed.
    pub async fn issue(&self) -> Result<Token, Failure> {
        let Eks { cluster, region, identity, sts } = &self.eks;
        let caller = self.caller.get_or_init(|| Caller::new(identity, sts.clone(), region)).await;
        let credentials = caller.credentials().await?;
        token(cluster, region, credentials, SystemTime::now())
    }
}

/// Where STS is in a region, as API servers know it.
fn sts_host(region: &str) -> String {
    let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("sts.{region}.{suffix}")
}

/// A token for a cluster that is signed at a time.
fn token(
    cluster: &str,
    region: &str,
    credentials: Credentials,
    now: SystemTime,
) -> Result<Token, Failure> {
    let unsigned = |_| Failure::Credentials("a question to STS cannot be signed".to_owned());
    let expires = now + TOKEN_LIVES;
    let expires = credentials.expiry().map_or(expires, |end| end.min(expires));
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(QUESTION_LIVES);
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("sts")
        .time(now)
        .settings(settings)
        .build()
        .map_err(|_| unsigned(()))?
        .into();
    let url = format!("https://{}/?Action=GetCallerIdentity&Version=2011-06-15", sts_host(region));
    let headers = [(CLUSTER_HEADER, cluster)];
    let question = SignableRequest::new("GET", &url, headers.into_iter(), SignableBody::Bytes(&[]))
        .map_err(|_| unsigned(()))?;
    let (signature, _) = sign(question, &params).map_err(|_| unsigned(()))?.into_parts();
    let mut signed = http::Request::get(&url).body(()).map_err(|_| unsigned(()))?;
    signature.apply_to_request_http1x(&mut signed);
    let secret = format!("{PREFIX}{}", base64url(signed.uri().to_string().as_bytes()));
    Ok(Token { secret, expires })
}

/// Bytes in base64url without padding.
fn base64url(bytes: &[u8]) -> String {
    let text = aws_smithy_types::base64::encode(bytes);
    text.trim_end_matches('=').replace('+', "-").replace('/', "_")
}

#[cfg(test)]
mod tests;
