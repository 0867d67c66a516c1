//! Port bitmaps, given back when nobody needs them.
//!
//! The datapath makes a pair (outside address, destination) hot by itself; that a pair has
//! cooled down is only noticed here. Taking its bitmap away loses nothing: the session table
//! is the judge of what is lent, and a pair that turns hot again gets an empty bitmap.

use super::tables::{Datapath, lock};
use std::time::{Duration, Instant};
use xdp_abi::port::Ports;

/// How long a bitmap is left alone after its pair lost it: far longer than any packet takes.
const GRACE: Duration = Duration::from_secs(1);

/// Bitmaps on their way back.
#[derive(Debug, Default)]
pub struct Cooling {
    waiting: Vec<(u32, Instant)>,
}

impl Cooling {
    /// Takes bitmaps from pairs that have no session, and gives back those that have waited.
    pub fn tend(&mut self, datapath: &Datapath) {
        let now = Instant::now();
        let (ripe, waiting) =
            self.waiting.drain(..).partition(|(_, since)| now.duration_since(*since) >= GRACE);
        self.waiting = waiting;
        let ripe: Vec<(u32, Instant)> = ripe;
        for (number, since) in ripe {
            let Some(bitmap) = datapath.bitmaps.get(number) else { continue };
            for word in bitmap.words.iter().chain(&bitmap.summary) {
                word.store(0);
            }
            if lock(&datapath.free_bitmaps).push(number, 0).is_err() {
                self.waiting.push((number, since));
            }
        }
        let mut pairs = lock(&datapath.pairs);
        let hot: Vec<_> = pairs.iter().flatten().collect();
        for (pair, number) in hot {
            if datapath.bitmaps.get(number).is_some_and(is_empty) && pairs.remove(&pair).is_ok() {
                datapath.shared_words().hot_pairs.fetch_add(u64::MAX);
                self.waiting.push((number, now));
            }
        }
    }
}

fn is_empty(bitmap: &Ports) -> bool {
    bitmap.words.iter().all(|word| word.load() == 0)
}

/// What may be lent has changed: a word that was full may have room now. The datapath finds out
/// again which are full.
pub fn open_all(datapath: &Datapath) {
    for bitmap in datapath.bitmaps.all() {
        for word in &bitmap.summary {
            if word.load() != 0 {
                word.store(0);
            }
        }
    }
}
