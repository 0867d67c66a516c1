//! Packet bytes, four at a time.
//!
//! The compiler knows nothing of where a packet lies and so reads and writes its bytes one by
//! one. The machines that we run on, and the verifier, take a word at any address in a packet.

use core::{arch::asm, mem::MaybeUninit};

/// Four bytes at a constant distance from an address.
macro_rules! read {
    ($type:ident, $from:expr, $distance:literal) => {{
        let word: u64;
        asm!(
            concat!("{word} = *(", stringify!($type), " *)({from} + ", $distance, ")"),
            word = lateout(reg) word,
            from = in(reg) $from,
            options(pure, readonly, nostack, preserves_flags),
        );
        word as $type
    }};
}

macro_rules! write {
    ($type:ident, $to:expr, $distance:literal, $word:expr) => {
        asm!(
            concat!("*(", stringify!($type), " *)({to} + ", $distance, ") = {word}"),
            to = in(reg) $to,
            word = in(reg) u64::from($word),
            options(nostack, preserves_flags),
        )
    };
}

/// Does something to each whole word of `N` bytes, at its constant distance.
macro_rules! each_word {
    ($n:ident, $word:ident) => {
        const { assert!($n <= 20) };
        if $n >= 4 {
            $word!(0);
        }
        if $n >= 8 {
            $word!(4);
        }
        if $n >= 12 {
            $word!(8);
        }
        if $n >= 16 {
            $word!(12);
        }
        if $n >= 20 {
            $word!(16);
        }
    };
}

/// The same number, of which the compiler knows nothing any more: it leaves a check in place that
/// the verifier wants to see.
#[inline(always)]
pub(super) fn opaque(number: u32) -> u32 {
    let mut number = u64::from(number);
    // Not without an instruction: the verifier refuses two lines of the source for one place.
    // SAFETY: it copies a register to itself.
    unsafe {
        asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack, preserves_flags));
    }
    number as u32
}

/// Reads `N` bytes.
///
/// # Safety
///
/// `from..from + N` was shown to lie inside the packet.
#[inline(always)]
pub(super) unsafe fn load<const N: usize>(from: usize) -> [u8; N] {
    let mut bytes = MaybeUninit::<[u8; N]>::uninit();
    let to = bytes.as_mut_ptr().cast::<u8>();
    // SAFETY: the caller vouches for the packet; `bytes` has room for as many.
    unsafe {
        macro_rules! word {
            ($distance:literal) => {
                to.add($distance).cast::<u32>().write_unaligned(read!(u32, from, $distance))
            };
        }
        each_word!(N, word);
        let rest = N / 4 * 4;
        if N % 4 >= 2 {
            to.add(rest).cast::<u16>().write_unaligned(read!(u16, from + rest, 0));
        }
        if N % 2 == 1 {
            to.add(N - 1).write(*((from + N - 1) as *const u8));
        }
        bytes.assume_init()
    }
}

/// Writes `N` bytes.
///
/// # Safety
///
/// As for [`load`].
#[inline(always)]
pub(super) unsafe fn store<const N: usize>(to: usize, bytes: [u8; N]) {
    let from = bytes.as_ptr();
    // SAFETY: the caller vouches for the packet; `bytes` holds as many.
    unsafe {
        macro_rules! word {
            ($distance:literal) => {
                write!(u32, to, $distance, from.add($distance).cast::<u32>().read_unaligned())
            };
        }
        each_word!(N, word);
        let rest = N / 4 * 4;
        if N % 4 >= 2 {
            write!(u16, to + rest, 0, from.add(rest).cast::<u16>().read_unaligned());
        }
        if N % 2 == 1 {
            *((to + N - 1) as *mut u8) = *from.add(N - 1);
        }
    }
}

/// Fills room for a value with zeros. Word by word, because the compiler would make a loop over
/// bytes of it, or call a function that does.
///
/// # Safety
/// All zeros is a value of `T`.
#[inline(always)]
pub(super) unsafe fn zeroed<T>(room: &mut MaybeUninit<T>) -> &mut T {
    const { assert!(size_of::<T>() % 4 == 0 && align_of::<T>() % 4 == 0) };
    let start = room.as_mut_ptr();
    let mut i = 0;
    // SAFETY: the words are those of the room, and aligned as it is.
    unsafe {
        if const { size_of::<T>() % 8 == 0 && align_of::<T>() % 8 == 0 } {
            while i < size_of::<T>() / 8 {
                start.cast::<u64>().add(i).write_volatile(0);
                i += 1;
            }
        } else {
            while i < size_of::<T>() / 4 {
                start.cast::<u32>().add(i).write_volatile(0);
                i += 1;
            }
        }
        room.assume_init_mut()
    }
}
