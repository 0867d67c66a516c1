//! A capture from its beginning to its end, whatever its reader does.

use super::{Looking, Sieve, copies::Copies};
use crate::flows::Live;
use api::capture::{End, Line, Lost};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{
        broadcast::{self, error::RecvError, error::TryRecvError},
        mpsc,
    },
    time::{Instant, sleep, timeout, timeout_at},
};

/// How long the last copies may be on their way through the ring.
const ON_THEIR_WAY: Duration = Duration::from_millis(500);
/// How long a reader may take for the last line.
const LAST_LINE: Duration = Duration::from_secs(2);

/// A capture that goes on. Its lines go into a channel, and from there to the client.
pub(super) struct Run<L: Live> {
    pub(super) looking: Looking<L>,
    pub(super) packets: broadcast::Receiver<Arc<Copies>>,
    pub(super) sieve: Sieve,
    /// Packets that are wanted.
    pub(super) count: u64,
    pub(super) until: Instant,
    /// Nanoseconds since 1970 when the monotonic clock stood at zero.
    pub(super) epoch: u64,
}

/// The client is gone.
struct HungUp;

impl<L: Live> Run<L> {
    /// Sends lines until the capture is over, and what is to be said of it at last.
    pub(super) async fn run(mut self, lines: mpsc::Sender<Vec<u8>>) {
        let mut end = End { packets: 0, sample: self.looking.sample, lost: Lost::default() };
        if let Err(HungUp) = self.send(&lines, &mut end).await {
            return;
        }
        self.looking.stop();
        let settled = Instant::now() + ON_THEIR_WAY;
        while self.looking.missing() > 0 && Instant::now() < settled {
            sleep(ON_THEIR_WAY / 25).await;
        }
        end.lost.copies = self.looking.missing();
        self.send_what_waits(&lines, &mut end);
        // Whoever wants to capture next does not wait for this reader.
        drop(self);
        let _ = timeout(LAST_LINE, lines.send(line(&Line::End { end }))).await;
    }

    /// Sends packets as they come, until there are enough or the time is over.
    async fn send(&mut self, lines: &mpsc::Sender<Vec<u8>>, end: &mut End) -> Result<(), HungUp> {
        while end.packets < self.count && Instant::now() < self.until {
            let packet = tokio::select! {
                () = lines.closed() => return Err(HungUp),
                packet = timeout_at(self.until, self.packets.recv()) => packet,
            };
            let (text, shown) = match packet {
                Ok(Ok(packet)) => match self.wanted(&packet) {
                    Some(text) => (text, 1),
                    None => continue,
                },
                Ok(Err(RecvError::Lagged(packets))) => {
                    tracing::warn!(packets, "a capture is read too slowly; packets were left out");
                    end.lost.packets += packets;
                    (line(&Line::Lost { lost: Lost { packets, copies: 0 } }), 0)
                }
                Ok(Err(RecvError::Closed)) | Err(_) => break,
            };
            match timeout_at(self.until, lines.send(text)).await {
                Ok(Ok(())) => end.packets += shown,
                Ok(Err(_)) => return Err(HungUp),
                Err(_) => end.lost.packets += shown,
            }
        }
        Ok(())
    }

    /// What came before the time was over is sent too, as far as the reader keeps up.
    fn send_what_waits(&mut self, lines: &mpsc::Sender<Vec<u8>>, end: &mut End) {
        while end.packets < self.count {
            match self.packets.try_recv() {
                Ok(packet) => {
                    let Some(text) = self.wanted(&packet) else { continue };
                    match lines.try_send(text) {
                        Ok(()) => end.packets += 1,
                        Err(_) => end.lost.packets += 1,
                    }
                }
                Err(TryRecvError::Lagged(packets)) => end.lost.packets += packets,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    /// The lines of a packet, if the filter wants it.
    fn wanted(&self, packet: &Copies) -> Option<Vec<u8>> {
        let capture = &self.looking.capture;
        let rule = capture.directories.current().rule(packet.after.rule);
        if !self.sieve.lets_through(packet, rule.as_deref()) {
            return None;
        }
        let copies = packet.before.iter().chain([&packet.after]);
        Some(copies.flat_map(|copy| line(&Line::Frame(capture.frame(copy, self.epoch)))).collect())
    }
}

fn line(line: &Line) -> Vec<u8> {
    let mut text = serde_json::to_vec(line).expect("a line has only strings for keys");
    text.push(b'\n');
    text
}
