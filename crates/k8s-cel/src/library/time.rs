//! Durations and timestamps. Named time zones other than UTC are unknown here: their rules are data of
//! the machine that the scheduler runs on.

use super::{Implementation, int, text};
use crate::value::{Failure, Outcome, Timestamp, Value, fail, no_overload};

/// 0001-01-01T00:00:00Z.
pub(crate) const SECONDS_MIN: i64 = -62_135_596_800;
/// 9999-12-31T23:59:59Z.
const SECONDS_MAX: i64 = 253_402_300_799;
const NANOS: i64 = 1_000_000_000;
const DAY: i64 = 86_400;

/// The getter that an overload is.
pub(crate) fn implementation(overload: &str) -> Option<Implementation> {
    Some(match overload {
        "timestamp_to_year" | "timestamp_to_year_with_tz" => |args, _| get(args, |c| c.year),
        "timestamp_to_month" | "timestamp_to_month_with_tz" => |args, _| get(args, |c| c.month - 1),
        "timestamp_to_day_of_year" | "timestamp_to_day_of_year_with_tz" => {
            |args, _| get(args, |c| c.day_number - days_from_civil(c.year, 1, 1))
        }
        "timestamp_to_day_of_month" | "timestamp_to_day_of_month_with_tz" => {
            |args, _| get(args, |c| c.day - 1)
        }
        "timestamp_to_day_of_month_1_based" | "timestamp_to_day_of_month_1_based_with_tz" => {
            |args, _| get(args, |c| c.day)
        }
        // 1970-01-01 was a Thursday.
        "timestamp_to_day_of_week" | "timestamp_to_day_of_week_with_tz" => {
            |args, _| get(args, |c| (c.day_number + 4).rem_euclid(7))
        }
        "timestamp_to_hours" | "timestamp_to_hours_with_tz" => {
            |args, _| get(args, |c| c.second / 3600)
        }
        "timestamp_to_minutes" | "timestamp_to_minutes_with_tz" => {
            |args, _| get(args, |c| c.second / 60 % 60)
        }
        "timestamp_to_seconds" | "timestamp_to_seconds_tz" => {
            |args, _| get(args, |c| c.second % 60)
        }
        "timestamp_to_milliseconds" | "timestamp_to_milliseconds_with_tz" => {
            |args, _| get(args, |c| c.nanos / 1_000_000)
        }
        "duration_to_hours" => |args, _| whole(args, 3600 * NANOS),
        "duration_to_minutes" => |args, _| whole(args, 60 * NANOS),
        "duration_to_seconds" => |args, _| whole(args, NANOS),
        "duration_to_milliseconds" => |args, _| whole(args, 1_000_000),
        _ => return None,
    })
}

/// A point in time on the calendar of a zone.
struct Civil {
    year: i64,
    month: i64,
    day: i64,
    /// Days since 1970-01-01.
    day_number: i64,
    /// Of the day.
    second: i64,
    nanos: i64,
}

fn get(args: &[Value], part: fn(&Civil) -> i64) -> Outcome {
    let offset = match args.get(1) {
        Some(zone) => zone_offset(text(zone)?)?,
        None => 0,
    };
    match &args[0] {
        Value::Timestamp(at) => Ok(Value::Int(part(&civil(at, offset)))),
        _ => no_overload(),
    }
}

/// Seconds east of Greenwich: of a name, or of `-03:30`.
fn zone_offset(zone: &str) -> Result<i64, Failure> {
    let Some((hours, minutes)) = zone.split_once(':') else {
        return match zone {
            "" | "UTC" => Ok(0),
            _ => fail(format!("unknown time zone {zone}")),
        };
    };
    let number = |digits: &str| match digits.parse::<i64>() {
        Ok(number) => Ok(number),
        Err(_) => fail(format!(
            "strconv.Atoi: parsing {}: {}",
            super::quoted(digits),
            not_a_number(digits)
        )),
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let minutes = if zone.starts_with('-') {
        -minutes
    } else {
        minutes
    };
    Ok(hours
        .wrapping_mul(60)
        .wrapping_add(minutes)
        .wrapping_mul(60))
}

fn not_a_number(digits: &str) -> &'static str {
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    let number = !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit());
    if number {
        "value out of range"
    } else {
        "invalid syntax"
    }
}

fn civil(at: &Timestamp, offset: i64) -> Civil {
    // Offsets that make no sense must not overflow; what they give makes none either.
    let local = at
        .seconds
        .saturating_add(offset.clamp(-SECONDS_MAX, SECONDS_MAX));
    let day_number = local.div_euclid(DAY);
    let (year, month, day) = civil_from_days(day_number);
    Civil {
        year,
        month,
        day,
        day_number,
        second: local.rem_euclid(DAY),
        nanos: i64::from(at.nanos),
    }
}

/// Year, month and day of a count of days since 1970-01-01, in eras of 400 years that begin in March.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn whole(args: &[Value], unit: i64) -> Outcome {
    match &args[0] {
        Value::Duration(nanos) => Ok(Value::Int(nanos / unit)),
        other => int(other).map(Value::Int),
    }
}

/// The timestamp, if it is within the years 1 to 9999.
pub(crate) fn at(seconds: i64, nanos: u32, offset: i32) -> Outcome {
    if !(SECONDS_MIN..=SECONDS_MAX).contains(&seconds) {
        return fail("timestamp overflow");
    }
    Ok(Value::Timestamp(Timestamp {
        seconds,
        nanos,
        offset,
    }))
}

pub(crate) fn add_durations(a: i64, b: i64) -> Outcome {
    match a.checked_add(b) {
        Some(nanos) => Ok(Value::Duration(nanos)),
        None => fail("duration overflow"),
    }
}

pub(crate) fn subtract_durations(a: i64, b: i64) -> Outcome {
    match a.checked_sub(b) {
        Some(nanos) => Ok(Value::Duration(nanos)),
        None => fail("duration overflow"),
    }
}

/// `to + by`.
pub(crate) fn later(to: &Timestamp, by: i64) -> Outcome {
    let nanos = i64::from(to.nanos) + by.rem_euclid(NANOS);
    let seconds = to.seconds + by.div_euclid(NANOS) + nanos / NANOS;
    let nanos = u32::try_from(nanos % NANOS).unwrap_or(0);
    at(seconds, nanos, to.offset)
}

/// `from - by`.
pub(crate) fn earlier(from: &Timestamp, by: i64) -> Outcome {
    match by.checked_neg() {
        Some(by) => later(from, by),
        None => fail("duration overflow"),
    }
}

/// `a - b`.
pub(crate) fn between(a: &Timestamp, b: &Timestamp) -> Outcome {
    let seconds = (a.seconds - b.seconds).checked_mul(NANOS);
    let nanos = seconds.and_then(|n| n.checked_add(i64::from(a.nanos) - i64::from(b.nanos)));
    match nanos {
        Some(nanos) => Ok(Value::Duration(nanos)),
        None => fail("integer overflow"),
    }
}

/// Seconds with as many digits as it takes, and the unit.
pub(crate) fn duration_text(nanos: i64) -> String {
    let seconds = (nanos / NANOS) as f64 + (nanos % NANOS) as f64 / 1e9;
    format!("{seconds}s")
}

/// RFC 3339, with as many digits of the second as it takes.
pub(crate) fn timestamp_text(at: &Timestamp) -> String {
    let c = civil(at, i64::from(at.offset));
    let (hour, minute, second) = (c.second / 3600, c.second / 60 % 60, c.second % 60);
    let mut text = format!(
        "{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}",
        c.year, c.month, c.day
    );
    if c.nanos > 0 {
        let digits = format!("{:09}", c.nanos);
        text.push('.');
        text.push_str(digits.trim_end_matches('0'));
    }
    if at.offset == 0 {
        text.push('Z');
    } else {
        let sign = if at.offset < 0 { '-' } else { '+' };
        let minutes = at.offset.abs() / 60;
        text.push_str(&format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60));
    }
    text
}

/// Reads `1h30m0.5s`: nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    const LIMIT: u64 = 1 << 63;
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0_u64;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, after) = rest.split_at(digits);
        let mut fraction = "";
        rest = after;
        if let Some(after) = rest.strip_prefix('.') {
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            (fraction, rest) = after.split_at(digits);
        }
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let value: u64 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        let letters = rest.find(|c: char| c == '.' || c.is_ascii_digit());
        let (name, after) = rest.split_at(letters.unwrap_or(rest.len()));
        rest = after;
        let unit = unit_nanos(name)?;
        let part = value.checked_mul(unit).filter(|part| *part <= LIMIT)?;
        total = total
            .checked_add(part)?
            .checked_add(fraction_nanos(fraction, unit))
            .filter(|total| *total <= LIMIT)?;
    }
    match (negative, i64::try_from(total)) {
        (false, Ok(nanos)) => Some(nanos),
        (true, Ok(nanos)) => Some(-nanos),
        (true, Err(_)) => Some(i64::MIN),
        (false, Err(_)) => None,
    }
}

fn unit_nanos(name: &str) -> Option<u64> {
    Some(match name {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// A fraction of a unit, in floating point as Go has it. Digits that do not fit are left out.
fn fraction_nanos(digits: &str, unit: u64) -> u64 {
    let (mut value, mut scale) = (0_u64, 1.0);
    for digit in digits.bytes() {
        let next = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(digit - b'0')));
        let Some(next) = next.filter(|next| i64::try_from(*next).is_ok()) else {
            break;
        };
        value = next;
        scale *= 10.0;
    }
    (value as f64 * (unit as f64 / scale)) as u64
}

/// Reads RFC 3339: seconds and nanoseconds since 1970, and the zone's offset in seconds.
pub(crate) fn parse_timestamp(text: &str) -> Option<(i64, u32, i32)> {
    let mut reader = Reader { rest: text };
    let year = reader.number(4, 4)?;
    reader.sign('-')?;
    let month = reader
        .number(2, 2)
        .filter(|month| (1..=12).contains(month))?;
    reader.sign('-')?;
    let day = reader.number(2, 2)?;
    reader.sign('T')?;
    // Go takes an hour of one digit.
    let hour = reader.number(1, 2).filter(|hour| *hour < 24)?;
    reader.sign(':')?;
    let minute = reader.number(2, 2).filter(|minute| *minute < 60)?;
    reader.sign(':')?;
    let second = reader.number(2, 2).filter(|second| *second < 60)?;
    let nanos = reader.fraction();
    let offset = reader.zone()?;
    let days = days_from_civil(year, month, day);
    if !reader.rest.is_empty() || civil_from_days(days) != (year, month, day) {
        return None;
    }
    let local = days * DAY + hour * 3600 + minute * 60 + second;
    Some((local - i64::from(offset), nanos, offset))
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn number(&mut self, min: usize, max: usize) -> Option<i64> {
        let digits = self.rest.bytes().take(max).take_while(u8::is_ascii_digit);
        let digits = digits.count();
        if digits < min {
            return None;
        }
        let (number, rest) = self.rest.split_at(digits);
        self.rest = rest;
        number.parse().ok()
    }

    fn sign(&mut self, sign: char) -> Option<()> {
        self.rest = self.rest.strip_prefix(sign)?;
        Some(())
    }

    fn fraction(&mut self) -> u32 {
        let Some(rest) = self.rest.strip_prefix(['.', ',']) else {
            return 0;
        };
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return 0;
        }
        let (fraction, rest) = rest.split_at(digits);
        self.rest = rest;
        let nine: String = fraction
            .chars()
            .chain("000000000".chars())
            .take(9)
            .collect();
        nine.parse().unwrap_or(0)
    }

    fn zone(&mut self) -> Option<i32> {
        if self.sign('Z').is_some() {
            return Some(0);
        }
        let negative = self.rest.starts_with('-');
        self.rest = self.rest.strip_prefix(['+', '-'])?;
        let hours = self.number(2, 2).filter(|hours| *hours <= 24)?;
        self.sign(':')?;
        let minutes = self.number(2, 2).filter(|minutes| *minutes <= 60)?;
        let offset = i32::try_from((hours * 60 + minutes) * 60).ok()?;
        Some(if negative { -offset } else { offset })
    }
}

/// Dates for the named formats: whether the text is a day of the calendar, `2006-01-02`.
pub(crate) fn is_date(text: &str) -> bool {
    let mut reader = Reader { rest: text };
    let mut read = || {
        let year = reader.number(4, 4)?;
        reader.sign('-')?;
        let month = reader
            .number(2, 2)
            .filter(|month| (1..=12).contains(month))?;
        reader.sign('-')?;
        let day = reader.number(2, 2)?;
        let days = days_from_civil(year, month, day);
        (reader.rest.is_empty() && civil_from_days(days) == (year, month, day)).then_some(())
    };
    read().is_some()
}
