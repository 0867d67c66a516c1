//! Names in DNS: which addresses they have, and had a moment ago.
//!
//! [`Names`] asks DNS for every name again when what it said last is no longer good, and says when
//! the addresses of a name have changed. What to ask next and who is a member is decided by the
//! [`Book`], without I/O; `ask` asks.
//!
//! **An address stays for a while.** The gateway sees packets and not the answers that their senders
//! got: those come from other resolvers, at other times, and where many addresses take turns they are
//! others. So an address that was ever answered stays a member until its TTL and a grace beyond it
//! have passed ([`Rules::grace`]).
//!
//! **A name never loses all.** An answer that is missing, fails or is empty takes nothing away: time
//! that nothing is heard in does not count. What is known is then old, and that is told.
//!
//! **Not every address is taken.** Whoever answers for a name could otherwise make a member of
//! anything: of a pod, of the machine itself, of a metadata service ([`Rules::why_not`]).

mod ask;
mod book;
mod name;
mod names;
mod rules;

pub use book::{Answer, Book, Family, Heard, NameStatus, Question};
pub use name::{DnsName, DnsNameError};
pub use names::{Learned, Names, Settings};
pub use rules::{MOST_ADDRESSES, MOST_NAMES, Rules, WhyNot};
