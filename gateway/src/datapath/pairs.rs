//! Port bitmaps, given back when nobody needs them.
//!
//! The datapath makes a pair (outside address, destination) hot by itself; that a pair has
//! cooled down is only noticed here. Taking its bitmap away loses nothing: the session table
//! is the judge of what is lent, and a pair that turns hot again gets an empty bitmap.

use super::tables::{Datapath, lock};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use xdp_abi::port::Ports;

/// How long a bitmap is left alone after its pair lost it: far longer than any packet takes.
const GRACE: Duration = Duration::from_secs(1);

/// Bitmaps on their way back.
#[derive(Debug, Default)]
pub struct Cooling {
    waiting: Vec<(u32, Instant)>,
    /// Bitmaps that stood nowhere, since when, and have no pair so far.
    strays: Option<(BTreeSet<u32>, Instant)>,
    /// Whether what an earlier daemon took from pairs and had not given back was looked for.
    looked: bool,
}

impl Cooling {
    /// Takes bitmaps from pairs that have no session, and gives back those that have waited, and
    /// those that nobody has.
    pub fn tend(&mut self, datapath: &Datapath) {
        let now = Instant::now();
        let (ripe, waiting): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(|(_, since)| now.duration_since(*since) >= GRACE);
        self.waiting = waiting;
        for (number, _) in ripe {
            self.give_back(datapath, number, now);
        }
        let hot: Vec<_> = lock(&datapath.pairs).iter().flatten().collect();
        let paired: BTreeSet<u32> = hot.iter().map(|(_, number)| *number).collect();
        self.find_strays(datapath, &paired, now);
        let mut pairs = lock(&datapath.pairs);
        for (pair, number) in hot {
            if datapath.bitmaps.get(number).is_some_and(is_empty) && pairs.remove(&pair).is_ok() {
                datapath.shared_words().hot_pairs.fetch_add(u64::MAX);
                self.waiting.push((number, now));
            }
        }
    }

    /// Gives back bitmaps that no pair has, that are not free, and that nobody here waits with: an
    /// earlier daemon had taken them from their pairs and ended, or a packet found its pair hot when
    /// it had taken one. They are looked for once, and whenever none is free.
    ///
    /// A packet may hold a bitmap that it has just taken, so what stands nowhere is no stray yet. But
    /// packets only take: whatever one holds has a pair before the grace is over, or is nobody's for
    /// good, and nothing but this daemon makes a bitmap free. So what stood nowhere, and was not met
    /// with a pair since, is given back once, and nobody else has it or can come to have it.
    fn find_strays(&mut self, datapath: &Datapath, paired: &BTreeSet<u32>, now: Instant) {
        if let Some((mut strays, since)) = self.strays.take() {
            strays.retain(|number| !paired.contains(number));
            if now.duration_since(since) < GRACE {
                self.strays = Some((strays, since));
                return;
            }
            for number in strays {
                self.give_back(datapath, number, now);
            }
            return;
        }
        let all = datapath.bitmaps.all().len();
        let free = free(datapath, if self.looked { 1 } else { all });
        if self.looked && !free.is_empty() {
            return;
        }
        self.looked = true;
        let waiting: BTreeSet<u32> = self.waiting.iter().map(|(number, _)| *number).collect();
        let stands =
            |number: &u32| [&free, paired, &waiting].iter().any(|in_it| in_it.contains(number));
        let strays: BTreeSet<u32> = (0..all as u32).filter(|number| !stands(number)).collect();
        self.strays = (!strays.is_empty()).then_some((strays, now));
    }

    /// Makes a bitmap free that nobody has.
    fn give_back(&mut self, datapath: &Datapath, number: u32, now: Instant) {
        let Some(bitmap) = datapath.bitmaps.get(number) else { return };
        for word in bitmap.words.iter().chain(&bitmap.summary) {
            word.store(0);
        }
        if lock(&datapath.free_bitmaps).push(number, 0).is_err() {
            self.waiting.push((number, now));
        }
    }
}

/// The bitmaps that are free, or the first `most` of them. The queue is turned once around, so that
/// packets find it as full as it is: what comes out a second time was met already, and so was all
/// that stood between. What cannot be put back is one that nobody has.
fn free(datapath: &Datapath, most: usize) -> BTreeSet<u32> {
    let mut queue = lock(&datapath.free_bitmaps);
    let mut met = BTreeSet::new();
    while met.len() < most
        && let Ok(number) = queue.pop(0)
    {
        let is_back = queue.push(number, 0).is_ok();
        if is_back && !met.insert(number) {
            break;
        }
    }
    met
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
