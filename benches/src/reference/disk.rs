//! What the disk itself can do in the same run: the time of one small append with fdatasync.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// A sync that takes longer is a stall: not the disk's work, but somebody's before us.
const STALL: Duration = Duration::from_millis(20);

/// Appends 4 KiB and calls fdatasync, again and again for a while, beside nothing else. A message that is due in a stall
/// waits for its end, whatever the program does.
pub fn fdatasync(folder: &Path, during: Duration) -> crate::Result<Value> {
    let path = folder.join("fdatasync.reference");
    let mut file = std::fs::File::create(&path)?;
    let mut histogram = Histogram::<u64>::new(3)?;
    let mut stalled = Duration::ZERO;
    let end = Instant::now() + during;
    while Instant::now() < end {
        let begun = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        let taken = begun.elapsed();
        histogram.record(u64::try_from(taken.as_micros())?)?;
        stalled += if taken >= STALL { taken } else { Duration::ZERO };
    }
    std::fs::remove_file(&path)?;
    let ms = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(json!({
        "fdatasync_p50_ms": ms(0.5),
        "fdatasync_p99_ms": ms(0.99),
        "fdatasync_max_ms": ms(1.0),
        "stalled_percent": crate::compare::round(100.0 * stalled.as_secs_f64() / during.as_secs_f64()),
    }))
}
