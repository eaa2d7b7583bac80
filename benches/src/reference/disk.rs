//! What the disk itself can do in the same run: the time of one small append with fdatasync.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Appends 4 KiB and calls fdatasync, again and again for a while, beside nothing else.
pub fn fdatasync(folder: &Path, during: Duration) -> crate::Result<Value> {
    let path = folder.join("fdatasync.reference");
    let mut file = std::fs::File::create(&path)?;
    let mut histogram = Histogram::<u64>::new(3)?;
    let end = Instant::now() + during;
    while Instant::now() < end {
        let begun = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        histogram.record(u64::try_from(begun.elapsed().as_micros())?)?;
    }
    std::fs::remove_file(&path)?;
    let ms = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(json!({ "fdatasync_p50_ms": ms(0.5), "fdatasync_p99_ms": ms(0.99) }))
}
