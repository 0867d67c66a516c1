//! How many connections a server has, in all and of one peer.
//!
//! The limit in all keeps descriptors for the daemon's own work. The limit of one peer keeps room for
//! the others: whoever opens all that it may shuts out nobody but itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// How many connections there may be at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of everybody together.
    pub all: usize,
    /// Of one peer.
    pub peer: usize,
}

/// What a server tells of its connections.
#[derive(Debug, Default)]
pub struct Tally {
    open: AtomicU64,
    refused_all: AtomicU64,
    refused_peer: AtomicU64,
}

/// A reading of a [`Tally`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tallied {
    /// Connections that are open.
    pub open: u64,
    /// Connections that were refused because there were too many in all.
    pub refused_all: u64,
    /// Connections that were refused because their peer had too many.
    pub refused_peer: u64,
}

impl Tally {
    /// The numbers now.
    pub fn read(&self) -> Tallied {
        Tallied {
            open: self.open.load(Relaxed),
            refused_all: self.refused_all.load(Relaxed),
            refused_peer: self.refused_peer.load(Relaxed),
        }
    }
}

/// The connections of a server, by peer.
#[derive(Debug)]
pub(super) struct Room<P: Ord> {
    limits: Limits,
    tally: Arc<Tally>,
    peers: Mutex<BTreeMap<P, usize>>,
}

impl<P: Ord + Clone> Room<P> {
    pub(super) fn new(limits: Limits, tally: Arc<Tally>) -> Arc<Self> {
        Arc::new(Self { limits, tally, peers: Mutex::default() })
    }

    /// A place for a connection of this peer; `None`: it is refused.
    pub(super) fn enter(self: &Arc<Self>, peer: P) -> Option<Place<P>> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = peers.values().sum();
        let own = peers.get(&peer).copied().unwrap_or(0);
        let refused = if own >= self.limits.peer {
            Some(&self.tally.refused_peer)
        } else if all >= self.limits.all {
            Some(&self.tally.refused_all)
        } else {
            None
        };
        if let Some(refused) = refused {
            refused.fetch_add(1, Relaxed);
            return None;
        }
        peers.insert(peer.clone(), own + 1);
        self.tally.open.store(all as u64 + 1, Relaxed);
        Some(Place { room: Arc::clone(self), peer })
    }

    fn leave(&self, peer: &P) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = peers.get_mut(peer) {
            *own -= 1;
            if *own == 0 {
                peers.remove(peer);
            }
        }
        self.tally.open.store(peers.values().sum::<usize>() as u64, Relaxed);
    }
}

/// The place of one connection, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place<P: Ord + Clone> {
    room: Arc<Room<P>>,
    peer: P,
}

impl<P: Ord + Clone> Drop for Place<P> {
    fn drop(&mut self) {
        self.room.leave(&self.peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_leaves_room_for_others_and_all_together_for_the_daemon() {
        let tally = Arc::new(Tally::default());
        let room = Room::new(Limits { all: 5, peer: 3 }, Arc::clone(&tally));
        let mut greedy: Vec<_> = (0..3).map(|_| room.enter("greedy").unwrap()).collect();
        assert!(room.enter("greedy").is_none());
        let _others = [room.enter("one").unwrap(), room.enter("two").unwrap()];
        assert!(room.enter("three").is_none(), "five are all");
        assert_eq!(tally.read(), Tallied { open: 5, refused_all: 1, refused_peer: 1 });
        greedy.pop();
        assert!(room.enter("three").is_some(), "a place that was left is taken again");
        drop(greedy);
        assert_eq!(tally.read().open, 2);
        assert_eq!(room.peers.lock().unwrap().len(), 2, "who is gone is forgotten");
    }
}
