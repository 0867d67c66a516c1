//! Rules, SNAT policies and membership become a table image.
//!
//! [`compile()`] takes [`Inputs`] and gives an [`Image`]: bit sets of rules by identity and by port
//! class, whose common lowest bit is the rule that decides. The image has stable ids, bit sets and
//! prefixes, but no layout of any kernel: it crosses the fabric, and each gateway lowers it to its
//! own tables. What does not fit the stated [`Capacity`] is refused by name before anything is
//! swapped; what fits but cannot be meant comes along as [`Diagnostic`]s.
//!
//! A [`Compiler`] keeps a policy up while members of its groups come and go, and says what each
//! change changes in the image.
//!
//! [`evaluate`] answers the same questions from the inputs alone: rule by rule, selector by
//! selector. It is slow and obvious on purpose. [`Image::judge`] and [`Image::snat_for`] are the
//! portable image's own reading, and a property test compares the two; packets are judged by what
//! a gateway lowers the image to, which `tests/object` holds against the same evaluator.

mod bitset;
mod compile;
mod error;
mod image;
mod lint;
mod model;
mod oracle;
mod ports;
mod validate;

pub use bitset::BitSet;
pub use compile::{Amendment, Compiler, compile};
pub use error::{Capacity, CompileError, Side, Table};
pub use image::{Identity, Image, ImageGroup, ImageRule, ImageSnat};
pub use lint::Diagnostic;
pub use model::{
    Action, DefaultAction, Egress, Enforcement, Evaluation, Flow, Inputs, Log, PortRange, Protocol,
    Rule, RuleId, Scope, SnatAction, SnatId, SnatPolicy, WayOut,
};
pub use oracle::{evaluate, evaluate_snat};
pub use ports::PortClasses;
