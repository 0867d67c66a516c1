//! As whom AWS is asked.
//!
//! The SDK finds base credentials where every AWS client looks (environment, web identity, the role of
//! the instance), or in a file that the settings name; with them a role is assumed, if one is named. Both
//! are renewed by the SDK before they end; here it is noted until when they are good.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future::ProvideCredentials as Providing;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_sts::config::IdentityCache;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use smartgroups::Text;

use crate::failure::Failure;
use crate::settings::Identity;

/// How often the same is asked when AWS throttles or does not answer, the first time included.
const ATTEMPTS: u32 = 5;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a page may take, with all attempts.
const PAGE: Duration = Duration::from_secs(120);

/// The way to AWS as somebody.
#[derive(Clone)]
pub(crate) struct Caller {
    /// How AWS is asked; without a URL, which every service has its own of.
    pub(crate) config: SdkConfig,
    sts: Option<String>,
    provider: SharedCredentialsProvider,
    expiry: Arc<Mutex<Option<SystemTime>>>,
}

/// Nothing of what the SDK would tell of itself: that is long, and has the external id in it.
impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("expiry", &self.expiry()).finish_non_exhaustive()
    }
}

impl Caller {
    /// Asks nobody yet: credentials are looked for when they are first needed.
    pub(crate) async fn new(identity: &Identity, sts: Option<String>, region: &str) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT)
            .operation_attempt_timeout(ANSWER)
            .operation_timeout(PAGE)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(region.to_owned()))
            .http_client(http.clone())
            .retry_config(RetryConfig::adaptive().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts)
            .identity_cache(IdentityCache::lazy().build());
        if let Some(path) = &identity.credentials_file {
            let files = EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, path);
            // A section may name a role or a source that has to be asked.
            let way = ProviderConfig::without_region()
                .with_region(Some(Region::new(region.to_owned())))
                .with_http_client(http);
            let provider = ProfileFileCredentialsProvider::builder()
                .configure(&way)
                .profile_files(files.build())
                .profile_name("default")
                .build();
            loader = loader.credentials_provider(provider);
        }
        let base = loader.load().await;
        let inner = match &identity.role {
            Some(role) => {
                let mut assumed = AssumeRoleProvider::builder(role.arn.as_str())
                    .session_name(role.session_name.as_str())
                    .region(Region::new(region.to_owned()))
                    .configure(&with_url(&base, sts.as_ref()));
                if let Some(external_id) = &role.external_id {
                    assumed = assumed.external_id(external_id.as_str());
                }
                Some(SharedCredentialsProvider::new(assumed.build().await))
            }
            None => base.credentials_provider(),
        };
        let expiry = Arc::new(Mutex::new(None));
        let provider = Noting { inner, expiry: Arc::clone(&expiry) };
        let provider = SharedCredentialsProvider::new(provider);
        let config = base.into_builder().credentials_provider(provider.clone()).build();
        Self { config, sts, provider, expiry }
    }

    /// The account that this is somebody of.
    pub(crate) async fn account(&self) -> Result<Option<Text>, Failure> {
        let sts = aws_sdk_sts::Client::new(&with_url(&self.config, self.sts.as_ref()));
        let said = sts.get_caller_identity().send().await;
        let said = said.map_err(|error| Failure::of("sts:GetCallerIdentity", &error))?;
        Ok(said.account.map(Text::from))
    }

    /// Credentials as they are now.
    pub(crate) async fn credentials(&self) -> Result<Credentials, Failure> {
        let credentials = self.provider.provide_credentials().await;
        credentials.map_err(|error| Failure::credentials(&error))
    }

    /// Until when the credentials that were given last are good; `None` if for ever, or if there were none.
    pub(crate) fn expiry(&self) -> Option<SystemTime> {
        *self.expiry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with_url(config: &SdkConfig, url: Option<&String>) -> SdkConfig {
    match url {
        Some(url) => config.to_builder().endpoint_url(url.as_str()).build(),
        None => config.clone(),
    }
}

/// Gives what another gives, and notes until when it is good.
#[derive(Debug)]
struct Noting {
    inner: Option<SharedCredentialsProvider>,
    expiry: Arc<Mutex<Option<SystemTime>>>,
}

impl ProvideCredentials for Noting {
    fn provide_credentials<'a>(&'a self) -> Providing<'a>
    where
        Self: 'a,
    {
        Providing::new(async {
            let none = || CredentialsError::not_loaded("nobody provides them");
            let inner = self.inner.as_ref().ok_or_else(none)?;
            let credentials = inner.provide_credentials().await?;
            let mut expiry = self.expiry.lock().unwrap_or_else(PoisonError::into_inner);
            *expiry = credentials.expiry();
            Ok(credentials)
        })
    }
}
