//! What to ask of the API server next: one watch of one kind, as decisions without I/O.
//!
//! The rules, and what goes wrong without them:
//!
//! - A list gives a version, a watch goes on from it, and every event and bookmark moves it on. Without
//!   bookmarks the version of a quiet kind grows too old.
//! - **410** (the version is too old) means: list again. In the stream or as the status of the answer,
//!   at the watch or between two pages of a list; asking with the same version again would fail for
//!   ever.
//! - A list is asked for as of now, never as any server happens to remember. One that is older than what
//!   was heard before comes from a server that lags, and is refused; only if that goes on for
//!   [`PATIENCE_WITH_OLD`] has the cluster's history itself gone back, as after a restore from a backup.
//! - The list is asked for as a stream first, which costs the server least; one that does not know or not
//!   allow it gets pages. Versions between 1.27 and 1.33 differ in which of both they do.
//! - A server that fails is asked again after a pause that doubles, up to [`LONGEST_PAUSE`], with a random
//!   part so that many watchers do not ask at once. Only a watch that has brought something resets it: a
//!   list that works and a watch that fails would otherwise make a storm of lists.

use std::time::{Duration, Instant};

use super::store::Version;

/// After the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(800);
/// However often it failed.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long lists may be older than what is known before they are believed.
pub(crate) const PATIENCE_WITH_OLD: Duration = Duration::from_secs(60);
/// How many objects a page of a list has.
pub(crate) const PAGE: u32 = 500;
/// A watch that ends sooner, with nothing heard, has failed, whatever it says.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);
/// How often a watch may fail in the same way before its version is suspected.
const SUSPICIOUS: u32 = 5;
/// How often pages may expire before all is asked for at once.
const EXPIRED_PAGES: u32 = 2;

/// What to ask next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// All objects, then changes, in one stream.
    StreamList,
    /// A page of all objects: the first, or the one that a mark of the page before names. Without a
    /// limit it is all of them.
    Page { next: Option<String>, limit: Option<u32> },
    /// Changes from a version on.
    Watch { from: String },
}

/// How asking came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The server refused, by the status of its answer or by an event in the stream.
    #[error("the server answered {code}{}: {message}", bracketed(reason))]
    Refused { code: u16, reason: String, message: String, retry_after: Option<Duration> },
    /// No answer.
    #[error("cannot reach the server: {0}")]
    Unreachable(String),
    /// A stream that said nothing for longer than a live one can.
    #[error("nothing was heard for {} s, not even a bookmark", .0.as_secs())]
    Silent(Duration),
    /// An answer that is not what the API says it is.
    #[error("the server's answer cannot be read: {0}")]
    Unreadable(String),
    /// There is no client to ask with.
    #[error("{0}")]
    NoAccess(String),
}

fn bracketed(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

impl Failure {
    /// Whether the version that was named is too old.
    pub(crate) fn is_expired(&self) -> bool {
        self.code() == Some(410)
    }

    /// Whether who we are may have changed: the client is to be made anew.
    pub(crate) fn is_about_access(&self) -> bool {
        match self {
            Self::Refused { code, .. } => *code == 401,
            Self::Unreachable(_) | Self::NoAccess(_) => true,
            Self::Silent(_) | Self::Unreadable(_) => false,
        }
    }

    /// Whether the server refused what was asked, rather than who asked or how often.
    fn is_about_the_question(&self) -> bool {
        self.code().is_some_and(|code| !matches!(code, 401 | 403 | 429))
    }

    fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Unreachable(_) | Self::Silent(_) | Self::Unreadable(_) | Self::NoAccess(_) => {
                None
            }
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Unreachable(_) | Self::Silent(_) | Self::Unreadable(_) | Self::NoAccess(_) => {
                None
            }
        }
    }
}

/// What becomes of a list that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is what there is.
    Believed,
    /// It is older than what is known.
    TooOld,
}

/// Where the watch of one kind stands.
#[derive(Debug)]
pub(crate) struct Course {
    step: Step,
    /// Whether the server may know streaming lists.
    streams: bool,
    /// The newest version that was heard of.
    newest: Version,
    /// Since when lists have been too old.
    old_since: Option<Instant>,
    /// How often in a row nothing came of asking.
    failures: u32,
    /// How often in a row the same watch was refused.
    refused: u32,
    expired_pages: u32,
}

impl Course {
    /// A watch that has not begun.
    pub(crate) fn new() -> Self {
        Self {
            step: Step::StreamList,
            streams: true,
            newest: Version::default(),
            old_since: None,
            failures: 0,
            refused: 0,
            expired_pages: 0,
        }
    }

    /// What to ask now.
    pub(crate) fn step(&self) -> &Step {
        &self.step
    }

    /// Whether the list is asked for as a stream.
    pub(crate) fn streams(&self) -> bool {
        self.streams
    }

    /// A page came, and it is not the last.
    pub(crate) fn paged(&mut self, next: String) {
        let limit = match &self.step {
            Step::Page { limit, .. } => *limit,
            Step::StreamList | Step::Watch { .. } => Some(PAGE),
        };
        self.step = Step::Page { next: Some(next), limit };
    }

    /// A list is complete, as of this version.
    pub(crate) fn listed(&mut self, version: &str, now: Instant) -> Verdict {
        self.expired_pages = 0;
        let this = Version::new(version);
        if this.is_before(self.newest) {
            let since = *self.old_since.get_or_insert(now);
            if now.duration_since(since) < PATIENCE_WITH_OLD {
                self.list_again();
                return Verdict::TooOld;
            }
        }
        self.old_since = None;
        self.newest = this;
        self.refused = 0;
        self.step = Step::Watch { from: version.to_owned() };
        Verdict::Believed
    }

    /// A watch brought a change or a bookmark of this version.
    pub(crate) fn heard(&mut self, version: &str) {
        self.failures = 0;
        self.refused = 0;
        // What a server that lags tells of is no place to go on from.
        if version.is_empty() || Version::new(version).is_before(self.newest) {
            return;
        }
        self.newest = self.newest.later(Version::new(version));
        self.step = Step::Watch { from: version.to_owned() };
    }

    /// A watch ended as it should; how long to wait before the next.
    pub(crate) fn ended(&mut self, lived: Duration, heard: bool, random: f64) -> Duration {
        match self.step {
            Step::StreamList => {
                // It ended before all was told: this server takes the question for another.
                self.give_up_streaming();
                Duration::ZERO
            }
            Step::Page { .. } | Step::Watch { .. } => {
                if heard || lived >= SHORTEST_WATCH {
                    self.failures = 0;
                    Duration::ZERO
                } else {
                    self.pause(random)
                }
            }
        }
    }

    /// Nothing came of what was asked; how long to wait before the next. `random` is in 0..1.
    pub(crate) fn failed(&mut self, failure: &Failure, random: f64) -> Duration {
        let streaming = self.step == Step::StreamList;
        if streaming && is_not_streaming(failure) {
            self.give_up_streaming();
            return Duration::ZERO;
        }
        let expired = failure.is_expired();
        match &self.step {
            Step::Page { next: Some(_), .. } if expired => {
                self.expired_pages += 1;
                self.list_again();
            }
            // The mark of a page is of no use to another server, or after a while.
            Step::Page { next: Some(_), .. } => self.list_again(),
            Step::StreamList => {
                self.refused += u32::from(failure.is_about_the_question());
                if self.refused >= SUSPICIOUS {
                    self.refused = 0;
                    self.give_up_streaming();
                }
            }
            Step::Page { next: None, .. } => {}
            Step::Watch { .. } => {
                self.refused += u32::from(failure.is_about_the_question());
                if expired || self.refused >= SUSPICIOUS {
                    self.refused = 0;
                    self.list_again();
                    // Once at once: a version that grew old while the server was away is usual.
                    if expired && self.failures == 0 {
                        self.failures = 1;
                        return Duration::ZERO;
                    }
                }
            }
        }
        self.pause(random).max(failure.retry_after().unwrap_or_default().min(LONGEST_PAUSE))
    }

    /// How long to wait after this failure, which is one more.
    pub(crate) fn pause(&mut self, random: f64) -> Duration {
        let doublings = self.failures.min(10);
        self.failures = self.failures.saturating_add(1);
        let whole = (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE);
        // Between a half and the whole.
        whole.mul_f64(0.5 + random / 2.0)
    }

    fn give_up_streaming(&mut self) {
        self.streams = false;
        self.list_again();
    }

    fn list_again(&mut self) {
        self.step = if self.streams {
            Step::StreamList
        } else {
            let limit = (self.expired_pages < EXPIRED_PAGES).then_some(PAGE);
            Step::Page { next: None, limit }
        };
    }
}

/// Whether a streaming list failed because the server has none. A server that has the gate off says
/// 422, older ones 400, and what stands between may swallow the stream until nothing is heard.
fn is_not_streaming(failure: &Failure) -> bool {
    match failure {
        Failure::Refused { code, .. } => matches!(code, 400 | 405 | 406 | 422 | 501),
        Failure::Silent(_) | Failure::Unreadable(_) => true,
        Failure::Unreachable(_) | Failure::NoAccess(_) => false,
    }
}

#[cfg(test)]
mod tests;
