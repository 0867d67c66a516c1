//! What AWS accounts have, as endpoints of an inventory.
//!
//! An [`Account`] asks AWS, region by region, for VPCs, subnets, network interfaces and instances, and
//! sends [`smartgroups::Change`]s; more rarely for peerings and Transit Gateways, which it keeps as
//! [`facts`]. AWS tells nobody what changes, so it is asked again and again; what is sent is the
//! difference.
//!
//! **What is lost is frozen.** A call that is refused, throttled to the end, or breaks off after half of
//! its pages changes nothing: what was known of that kind in that region stays, and the status says since
//! when it could not be fetched, why, and how old it is.
//!
//! **Whose address it is.** An instance has the addresses of its interfaces, but for those that it holds
//! for pods; `pods` says how these are told apart.
//!
//! [`Issuer`] issues tokens for API servers of EKS clusters, as the same identities.
//!
//! The SDK is known to `sdk`, `credentials` and `failure`, the signer to `eks`; nothing outside of this
//! crate sees a type of either.

mod account;
mod credentials;
mod eks;
pub mod facts;
mod failure;
mod kind;
mod pods;
mod sdk;
mod settings;
mod status;
mod view;

pub use account::{Account, Batch};
pub use eks::{Eks, Issuer, Token};
pub use failure::Failure;
pub use kind::Kind;
pub use settings::{AccountName, AccountNameError, Endpoints, Identity, Role, Scope, Settings};
pub use status::{AccountStatus, KindStatus, RegionStatus};
