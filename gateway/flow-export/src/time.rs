//! Moments as RFC 3339 has them, in UTC with milliseconds.
//!
//! Written here because a record has three of them and a calendar crate would be the largest
//! dependency of this one. The calendar is the proleptic Gregorian one, computed in eras of 400
//! years; a property test holds it against counting days one by one.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A moment, in nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 24 * 3600;

impl Timestamp {
    /// How long after `earlier` this is; nothing if it is before.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Year, month and day of a day since 1970-01-01.
const fn date(day: u64) -> (u64, u64, u64) {
    // Years begin in March here, so that the leap day is the last one.
    let since_year_0 = day + 719_468;
    let era = since_year_0 / 146_097;
    let day_of_era = since_year_0 % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

/// The day since 1970-01-01 of a date from then on.
const fn day(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let year_of_era = year % 400;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    year / 400 * 146_097 + day_of_era - 719_468
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / SECOND;
        let (year, month, day) = date(seconds / DAY);
        let of_day = seconds % DAY;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            of_day / 3600,
            of_day / 60 % 60,
            of_day % 60,
            self.0 % SECOND / 1_000_000,
        )
    }
}

/// A text that is no moment as this crate writes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time such as 2026-01-31T23:59:59.999Z")]
pub struct ParseTimestampError(String);

impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseTimestampError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Timestamp> {
    const FORM: &[u8] = b"0000-00-00T00:00:00.000Z";
    let shaped = text.len() == FORM.len()
        && text.bytes().zip(FORM).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            other => byte == *other,
        });
    if !shaped {
        return None;
    }
    let number = |from: usize, to: usize| text[from..to].parse::<u64>().ok();
    let (year, month, of_month) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if year < 1970 || !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = day(year, month, of_month);
    if of_month == 0 || date(days) != (year, month, of_month) {
        return None;
    }
    let seconds = days * DAY + hour * 3600 + minute * 60 + second;
    seconds.checked_mul(SECOND)?.checked_add(number(20, 23)? * 1_000_000).map(Timestamp)
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn moments_are_written_in_utc_with_milliseconds() {
        for (nanoseconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (999_999, "1970-01-01T00:00:00.000Z"), // less than a millisecond
            (1_000_000, "1970-01-01T00:00:00.001Z"),
            (951_782_399_999_999_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00.000Z"), // a leap day: 2000 is / 400
            (951_868_800_000_000_000, "2000-03-01T00:00:00.000Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000Z"), // 2100 has none
            (4_107_542_399_000_000_000, "2100-02-28T23:59:59.000Z"),
            (1_767_225_600_000_000_000, "2026-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(Timestamp(nanoseconds).to_string(), expected);
            let read: Timestamp = expected.parse().unwrap();
            assert_eq!(read.0, nanoseconds / 1_000_000 * 1_000_000, "{expected}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "2026-01-01T00:00:00Z",
            "2026-13-01T00:00:00.000Z",
            "2026-00-01T00:00:00.000Z",
            "2026-02-29T00:00:00.000Z",
            "2026-01-00T00:00:00.000Z",
            "2026-01-01T24:00:00.000Z",
            "2026-01-01T00:60:00.000Z",
            "2026-01-01T00:00:60.000Z",
            "2026-01-01 00:00:00.000Z",
            "1969-12-31T23:59:59.999Z",
            "9999-12-31T23:59:59.999Z", // more nanoseconds than fit
            "2026-01-01T00:00:0é.00Z",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    /// The obvious way: from one day to the next.
    fn dates() -> impl Iterator<Item = (u64, u64, u64)> {
        std::iter::successors(Some((1970u64, 1u64, 1u64)), |(year, month, day)| {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            Some(match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (month, day) if *day == length => (*year, month + 1, 1),
                (month, day) => (*year, *month, day + 1),
            })
        })
    }

    #[test]
    fn the_calendar_agrees_with_counting_days() {
        for (number, expected) in dates().take(250_000).enumerate() {
            assert_eq!(date(number as u64), expected);
            let (year, month, of_month) = expected;
            assert_eq!(day(year, month, of_month), number as u64);
        }
    }

    proptest! {
        #[test]
        fn a_moment_that_is_written_is_read_back(milliseconds in 0..=u64::MAX / 1_000_000) {
            let moment = Timestamp(milliseconds * 1_000_000);
            prop_assert_eq!(moment.to_string().parse::<Timestamp>().unwrap(), moment);
        }
    }
}
