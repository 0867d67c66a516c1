//! The loaded object, driven by `BPF_PROG_TEST_RUN`: a frame in, a fate and a frame out.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, RingBuf};
use aya::programs::{TestRun as _, TestRunOptions};
use gateway::datapath::memory::Mapped;
use gateway::datapath::numbers::Numbers;
use gateway::datapath::object::{Hooks, Sizes};
use gateway::datapath::places::Places;
use gateway::datapath::publish::Publisher;
use gateway::datapath::settings;
use gateway::datapath::tables::{Datapath, lock};
use xdp::pipeline::Hook;
use xdp::stamp::epoch_slot;
use xdp_abi::config::PolicyWord;
use xdp_abi::event::{CAPTURE, Captured, ENDED_REOPENED, Event4};
use xdp_abi::names;
use xdp_abi::session::{Link, Meta, State};
use xdp_abi::word::Word;
use zerocopy::FromBytes as _;

use crate::stand::{Rules, Stand, config, served, v4};

/// The shortest frame that a test run takes: an Ethernet header.
pub(crate) const SHORTEST: usize = 14;
/// More than any frame of the tests becomes.
const ROOM: usize = 4_096;

/// What a program did with a frame, in the kernel's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// `XDP_REDIRECT`, `TC_ACT_REDIRECT`.
    Redirect,
    /// `XDP_PASS`, `TC_ACT_UNSPEC`.
    Pass,
    /// `XDP_DROP`, `TC_ACT_SHOT`.
    Drop,
}

/// The hook that a test run takes a frame on: TC, if it is asked for and the kernel has no
/// objection. It hands the program no frame without the IP header that its ethertype promises.
pub(crate) fn runnable(hook: Hook, frame: &[u8]) -> Hook {
    let least = match frame.get(12..14) {
        Some([0x08, 0x00]) => SHORTEST + 20,
        Some([0x86, 0xdd]) => SHORTEST + 40,
        _ => SHORTEST + 1,
    };
    if frame.len() < least { Hook::Xdp } else { hook }
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) action: Action,
    pub(crate) frame: Vec<u8>,
    /// On XDP the first word of what is left in front of the frame for `tc_mark`, on TC the
    /// frame's own mark.
    pub(crate) mark: u32,
    /// On XDP the second of those: the interface by which `tc_mark` sends the frame.
    pub(crate) exit: u32,
}

/// What was read from the ring.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    Event(Event4),
    Copy(Box<Captured>),
}

pub(crate) struct Object {
    pub(crate) datapath: Datapath,
    pub(crate) places: Places,
    rates: Mapped<Word>,
    events: RingBuf<MapData>,
    publisher: Publisher,
}

impl Object {
    /// Loads it without pins, and brings it to the configuration as the engine does.
    pub(crate) fn load(stand: &Stand, rules: Rules) -> Result<Self> {
        let config = config(rules)?;
        let tables = &config.gateway.tables;
        let sizes = Sizes {
            sessions: tables.sessions,
            hosts: tables.endpoints,
            prefixes: tables.prefixes,
            identities: tables.identities,
            rules: tables.rules,
            port_classes: tables.port_classes,
            next_hops: tables.next_hops,
        };
        let datapath = Datapath::open(sizes, Hooks { xdp: true, tc: true }, None)?;
        settings::write(&datapath, &config);
        let numbers = Numbers::default().with(&config.gateway);
        let places = Places::of(&config, &stand.network, &served(), &numbers);
        ensure!(places.missing.is_empty(), "{:?}", places.missing);
        places.write(&datapath, &Places::default())?;
        // The namespace has no IPv6, and a program only asks the table.
        lock(&datapath.locals6).insert([0x20; 16], 1, 0)?;
        let rates = datapath.object().map(names::RATES)?;
        let events = datapath.take_events().context("the ring of events is taken")?;
        let publisher = Publisher::new(&datapath, std::collections::BTreeMap::new());
        let mut object = Self { datapath, places, rates, events, publisher };
        object.publish(rules)?;
        Ok(object)
    }

    /// Puts other rules into force.
    pub(crate) fn publish(&mut self, rules: Rules) -> Result<()> {
        let config = config(rules)?;
        let Self { datapath, publisher, places, .. } = self;
        let pools = publisher.plan(datapath, &config.image)?;
        publisher.publish(datapath, &config.image, pools, &places.ways_out, &|_| Vec::new())?;
        Ok(())
    }

    /// The policy in force, and where it stands.
    pub(crate) fn policy(&self) -> PolicyWord {
        PolicyWord(self.datapath.settings().policy.load())
    }

    /// How many sessions have begun, which is also the incarnation of the next.
    pub(crate) fn begun(&self) -> u32 {
        self.datapath.shared_words().incarnation.load() as u32
    }

    /// Runs an ingress program for a frame that came in by an interface of this thread's
    /// namespace; `mark` and `segments` are what a frame on TC has beside its bytes.
    pub(crate) fn ingress(
        &self,
        hook: Hook,
        ifindex: u32,
        frame: &[u8],
        mark: u32,
        segments: u32,
    ) -> Result<Ran> {
        match hook {
            Hook::Xdp => self.xdp(ifindex, frame),
            Hook::Tc => self.tc(names::TC_INGRESS, ifindex, frame, mark, segments),
        }
    }

    /// Runs the program at the exit of an interface.
    pub(crate) fn egress(&self, ifindex: u32, frame: &[u8], mark: u32) -> Result<Ran> {
        self.tc(names::TC_EGRESS, ifindex, frame, mark, 1)
    }

    fn xdp(&self, ifindex: u32, frame: &[u8]) -> Result<Ran> {
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex. The first two are offsets here.
        let context = bytes(&[0, frame.len() as u32, 0, ifindex, 0, 0]);
        let mut context_out = [0; 24];
        let mut out = [0; ROOM];
        let mut object = self.datapath.object();
        let ran = object.xdp(names::XDP_INGRESS)?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::default()
        })?;
        let action = match ran.return_value {
            1 => Action::Drop,
            2 => Action::Pass,
            4 => Action::Redirect,
            other => anyhow::bail!("XDP answers {other}"),
        };
        // What stands in front of the frame comes out with it.
        let front = word(&context_out, 0) as usize;
        let [mark, exit] =
            if front == 0 { [0; 2] } else { [8, 4].map(|at| word(&out, front - at)) };
        Ok(Ran { action, frame: out[front..ran.data_size_out as usize].to_vec(), mark, exit })
    }

    fn tc(
        &self,
        program: &'static str,
        ifindex: u32,
        frame: &[u8],
        mark: u32,
        segments: u32,
    ) -> Result<Ran> {
        // `struct __sk_buff` in words.
        const MARK: usize = 2;
        const IFINDEX: usize = 10;
        const SEGMENTS: usize = 41;
        let mut words = [0; 48];
        words[MARK] = mark;
        words[IFINDEX] = ifindex;
        words[SEGMENTS] = segments;
        let context = bytes(&words);
        let mut context_out = [0; 192];
        let mut out = [0; ROOM];
        let mut object = self.datapath.object();
        let ran = object.tc(program)?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::default()
        })?;
        let action = match ran.return_value.cast_signed() {
            -1 => Action::Pass,
            2 => Action::Drop,
            7 => Action::Redirect,
            other => anyhow::bail!("TC answers {other}"),
        };
        let frame = out[..ran.data_size_out as usize].to_vec();
        Ok(Ran { action, frame, mark: word(&context_out, 4 * MARK), exit: 0 })
    }

    /// What the programs told since the last call.
    pub(crate) fn take_told(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        while let Some(item) = self.events.next() {
            told.push(if item.first() == Some(&CAPTURE) {
                Told::Copy(Box::new(Captured::read_from_bytes(&item).expect("a copy is whole")))
            } else {
                Told::Event(Event4::read_from_bytes(&item).expect("an event is whole"))
            });
        }
        told
    }

    /// Stops the clock: a jiffy count has no bit above the 63rd, so that every tick is zero.
    /// From then on time passes by [`Self::age`] only.
    pub(crate) fn stop_clock(&self) {
        let shift = &self.datapath.settings().tick_shift;
        shift.store(shift.load() | 63);
    }

    /// Lets seconds pass, by making everything that remembers a tick so much older. Only the
    /// distance of a tick from now is ever looked at.
    pub(crate) fn age(&self, seconds: u32) {
        let ticks = seconds * 16;
        for slot in self.datapath.slots.all() {
            let meta = Meta(slot.words[0].load());
            if !meta.is(State::Free) {
                slot.words[0].store(meta.with_tick(meta.tick().wrapping_sub(ticks)).0);
            }
        }
        for hop in self.datapath.hops.all() {
            let checked = hop.words[3].load();
            // The tick of a hop that was looked up; the others have neither.
            if checked != 0 {
                let tick = (checked as u32).wrapping_sub(ticks);
                hop.words[3].store(checked >> 32 << 32 | u64::from(tick));
            }
        }
        // A bucket is 24 bits of second over the counts of that second.
        for bucket in self.rates.all() {
            let word = bucket.load();
            if word != 0 {
                let second = (word >> 40).wrapping_sub(u64::from(seconds)) & 0xff_ffff;
                bucket.store(second << 40 | word & 0xff_ffff_ffff);
            }
        }
    }

    /// Ends every session at once.
    pub(crate) fn clear_all(&self) -> Result<()> {
        for slot in self.datapath.slots.all() {
            let link = Link(slot.words[5].load());
            if Meta(slot.words[0].load()).is(State::Live) && !link.is_reply() {
                let record = self.datapath.records.get(link.record()).context("a record")?;
                let incarnation = (record.identity.load() >> 32) as u32;
                self.datapath.clear(link.record(), incarnation, ENDED_REOPENED)?;
            }
        }
        Ok(())
    }

    /// Has the flows of an address judged again, as the engine does.
    pub(crate) fn touch(&self, domain: u16, address: &str) {
        let mut epochs = self.datapath.epochs.read(0);
        epochs[epoch_slot(domain, v4(address)) as usize] += 1;
        self.datapath.epochs.set(0, &epochs);
    }
}

fn bytes<const N: usize>(words: &[u32; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}
