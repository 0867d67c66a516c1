//! Why something is not known, in a sentence that holds no secret.
//!
//! What AWS answers is quoted, but for where it may quote us: of a signature that does not fit AWS says
//! what it should have been made of, session token and all.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{ErrorMetadata, ProvideErrorMetadata, SdkError};

/// As much of a message as is kept: refusals may carry a kilobyte of encoded reasons.
const LONGEST: usize = 300;

/// Why a call brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The identity may not do it.
    #[error("{action} is refused ({code}): {message}")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// What AWS calls it.
        code: String,
        /// What AWS says of it.
        message: String,
    },
    /// Too much was asked, by us or by others of the account.
    #[error("{action} is throttled ({code}), however often it is asked")]
    Throttled {
        /// What was asked.
        action: &'static str,
        /// What AWS calls it.
        code: String,
    },
    /// There is no identity to ask with.
    #[error("there are no credentials: {0}")]
    Credentials(String),
    /// There is no answer.
    #[error("cannot reach AWS for {action}: {why}")]
    Unreachable {
        /// What was asked.
        action: &'static str,
        /// Why.
        why: String,
    },
    /// Another answer than facts.
    #[error("{action} failed ({code}): {message}")]
    Failed {
        /// What was asked.
        action: &'static str,
        /// What AWS calls it.
        code: String,
        /// What AWS says of it.
        message: String,
    },
    /// The answer is cut off, or is none.
    #[error("the answer to {action} is not whole: {why}")]
    Unreadable {
        /// What was asked.
        action: &'static str,
        /// Why.
        why: String,
    },
}

impl Failure {
    /// Of a call that failed.
    pub(crate) fn of<E, R>(action: &'static str, error: &SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
        R: std::fmt::Debug,
    {
        match error {
            SdkError::ServiceError(said) => match said.err().code() {
                Some(code) => Self::said(action, code, said.err().message().unwrap_or_default()),
                // Neither facts nor an error of AWS.
                None => Self::Unreadable { action, why: causes(said.err().source()) },
            },
            SdkError::ResponseError(_) => Self::Unreadable { action, why: causes(error.source()) },
            SdkError::ConstructionFailure(_)
            | SdkError::TimeoutError(_)
            | SdkError::DispatchFailure(_) => Self::without_answer(action, error),
            // The SDK may grow other kinds.
            _ => Self::Unreachable { action, why: "for a reason of the SDK's own".to_owned() },
        }
    }

    fn said(action: &'static str, code: &str, message: &str) -> Self {
        let (code, message) = (code.to_owned(), quoted(code, message));
        match code.as_str() {
            "UnauthorizedOperation"
            | "AccessDenied"
            | "AccessDeniedException"
            | "OptInRequired" => Self::Refused { action, code, message },
            "RequestLimitExceeded"
            | "Throttling"
            | "ThrottlingException"
            | "RequestThrottled"
            | "EC2ThrottledException"
            | "SlowDown" => Self::Throttled { action, code },
            _ => Self::Failed { action, code, message },
        }
    }

    /// Nothing came back, maybe because nothing was sent.
    fn without_answer<E, R>(action: &'static str, error: &SdkError<E, R>) -> Self
    where
        E: Error + 'static,
        R: std::fmt::Debug,
    {
        let mut next = error.source();
        while let Some(cause) = next {
            if let Some(credentials) = cause.downcast_ref::<CredentialsError>() {
                return Self::credentials(credentials);
            }
            next = cause.source();
        }
        Self::Unreachable { action, why: causes(error.source()) }
    }

    /// There are no credentials.
    pub(crate) fn credentials(error: &CredentialsError) -> Self {
        let mut next: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(cause) = next {
            // What AWS said to whoever wanted to be a role.
            if let Some(said) = cause.downcast_ref::<ErrorMetadata>() {
                let code = said.code().unwrap_or("no code");
                let message = quoted(code, said.message().unwrap_or_default());
                return Self::Credentials(format!("AWS refused them ({code}): {message}"));
            }
            next = cause.source();
        }
        Self::Credentials(causes(Some(error)))
    }
}

/// What AWS said, without what it may have quoted.
fn quoted(code: &str, message: &str) -> String {
    if code == "SignatureDoesNotMatch" {
        return "the signature does not fit; is the secret key right, and the clock?".to_owned();
    }
    shortened(message.lines().next().unwrap_or_default())
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_owned(),
    }
}

/// What an error and its causes say, each once.
fn causes(error: Option<&(dyn Error + 'static)>) -> String {
    let mut said: Vec<String> = Vec::new();
    let mut next = error;
    while let Some(error) = next {
        let text = error.to_string();
        said.retain(|outer| !outer.contains(&text));
        said.push(text);
        next = error.source();
    }
    shortened(&said.join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_aws_says_is_sorted_by_what_can_be_done_and_quotes_no_secret() {
        let long = format!("not authorized. Encoded: {}", "x".repeat(2000));
        for (code, message, expected) in [
            ("UnauthorizedOperation", "no.", "a is refused (UnauthorizedOperation): no."),
            ("RequestLimitExceeded", "slow", "a is throttled (RequestLimitExceeded), however"),
            ("InternalError", "oops\nsecret", "a failed (InternalError): oops"),
            (
                "SignatureDoesNotMatch",
                "should be secret",
                "a failed (SignatureDoesNotMatch): the si",
            ),
            ("AccessDenied", &long, "a is refused (AccessDenied): not authorized. Encoded: xx"),
        ] {
            let said = Failure::said("a", code, message).to_string();
            assert!(said.starts_with(expected), "{said}");
            assert!(!said.contains("secret") || code == "SignatureDoesNotMatch", "{said}");
            assert!(said.len() < 400, "{said}");
        }
    }
}
