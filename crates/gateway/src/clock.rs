//! The one clock of the process.

use std::sync::LazyLock;
use std::time::Instant;

use forebay_model::Moment;

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Microseconds since the process first asked.
#[must_use]
pub fn now() -> Moment {
    at(Instant::now())
}

/// The moment of an instant; instants before the first call count as the origin.
#[must_use]
pub fn at(instant: Instant) -> Moment {
    let micros = instant.saturating_duration_since(*ORIGIN).as_micros();
    Moment::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}
