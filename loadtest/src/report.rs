//! The report of a run for people: one HTML file with everything in it.

use serde_json::Value;

/// The whole page.
pub fn html(result: &Value) -> String {
    format!("<!doctype html><meta charset=utf-8><title>{}</title>", result["scenario"].as_str().unwrap_or("run"))
}
