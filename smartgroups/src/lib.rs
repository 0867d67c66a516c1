//! smartgroups
