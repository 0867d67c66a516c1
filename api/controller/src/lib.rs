//! The control plane: what was discovered and what is stated become a policy that is kept up.
//!
//! [`Discovery`] follows clusters and cloud accounts, [`Plane`] knows who there is and says what each
//! change changes in the policy. Both run inside of a gateway; who drives them brings what they say
//! into force.

mod alarms;
mod discovery;
mod plane;
mod recollection;
mod sizes;

pub use alarms::{Alarm, AlarmKind, AlarmStatus, Alarms, Growth};
pub use discovery::{Batch, Discovery, Followed, Heard, Source, Wanted};
pub use plane::{Plane, Policy, Step};
pub use recollection::{Recollection, Unconfirmed};
pub use sizes::{SizeChange, Sizes};
