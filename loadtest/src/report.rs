//! The report of a run for people: one HTML file with everything in it, plots and tables.

use std::fmt::Write as _;

use serde_json::Value;

use crate::plot::{Band, Chart, Scale, Series, escape, number};

/// The whole page.
pub fn html(result: &Value) -> String {
    let scenario = result["scenario"].as_str().unwrap_or("run");
    let sessions = result["sessions"].as_f64().unwrap_or(0.0);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{} with {} sessions</title>\n\
         <style>{STYLE}</style></head>\n<body><main>\n<h1>{} <small>{} sessions in {}</small></h1>\n",
        escape(scenario),
        number(sessions),
        escape(scenario),
        number(sessions),
        match result["processes"].as_u64() {
            Some(0 | 1) | None => "one process".to_owned(),
            Some(many) => format!("{many} processes"),
        },
    );
    page.push_str(&verdict(result));
    page.push_str(&tiles(result));
    let latencies = latencies(result);
    if !latencies.is_empty() {
        page.push_str(
            "<h2>Latencies</h2>\n<p class=\"note\">From the moment a thing was due. To the right of each mark is \
                       the slowest part: at 99 %, one in a hundred.</p>\n",
        );
        let chart = quantiles(&latencies);
        page.push_str(&chart.legend());
        page.push_str(&chart.svg());
        page.push_str(&latency_table(&latencies));
    }
    page.push_str(&timelines(result));
    page.push_str(&tables(result));
    page.push_str("</main></body>\n</html>\n");
    page
}

const STYLE: &str = include_str!("report.css");

/// In a sentence: did everything arrive?
fn verdict(result: &Value) -> String {
    let count = |name: &str| result[name].as_u64().unwrap_or(0);
    let (expected, missing) = (count("expected"), count("missing"));
    let (class, text) = match (expected, missing) {
        (0, 0) => return String::new(),
        (expected, 0) => {
            ("good", format!("Every message arrived: all {} deliveries, each counted once.", number(expected as f64)))
        }
        (expected, missing) => {
            ("bad", format!("{} of {} deliveries are missing.", number(missing as f64), number(expected as f64)))
        }
    };
    format!("<p class=\"verdict {class}\">{text}</p>\n")
}

/// The few numbers that a scenario is about.
fn tiles(result: &Value) -> String {
    let of = |path: &[&str]| path.iter().fold(result, |value, name| &value[*name]).as_f64();
    let all = [
        ("sent, p50", of(&["latency_ms", "sent", "p50"]), "ms"),
        ("sent, p99", of(&["latency_ms", "sent", "p99"]), "ms"),
        ("received, p50", of(&["latency_ms", "received", "p50"]), "ms"),
        ("received, p99", of(&["latency_ms", "received", "p99"]), "ms"),
        ("pong, p50", of(&["latency_ms", "pong", "p50"]), "ms"),
        ("pong, p99", of(&["latency_ms", "pong", "p99"]), "ms"),
        ("all back after", of(&["all_back_s"]), "s"),
        ("others' p99, during : before", of(&["others_p99_ratio"]), "×"),
        ("closed as slow", of(&["slow_closed"]), "sessions"),
        ("of the sample, reached", of(&["sampled_delivered"]).filter(|_| of(&["sampled"]) > Some(0.0)), "sessions"),
        ("all connected after", of(&["connect_s"]), "s"),
        ("client memory", of(&["memory", "client_bytes_per_session"]), "bytes a session"),
    ];
    let there = all.into_iter().filter_map(|(name, value, unit)| {
        let value = number(value?);
        Some(format!("<div><b>{value}</b> {unit}<br><span>{name}</span></div>"))
    });
    format!("<div class=\"tiles\">{}</div>\n", there.collect::<String>())
}

/// The latencies of a result with their names and colours.
fn latencies(result: &Value) -> Vec<(&'static str, &'static str, &Value)> {
    let of = &result["latency_ms"];
    let all = [
        ("sent: to the verdict", "s1", &of["sent"]),
        ("received: at the others", "s2", &of["received"]),
        ("pong", "s1", &of["pong"]),
        ("others before the trouble", "s3", &result["others_before_ms"]),
        ("others during the trouble", "s4", &result["others_during_ms"]),
        ("received by those in trouble", "s5", &of["received_in_trouble"]),
        ("repaired from history", "s6", &of["repaired"]),
    ];
    all.into_iter().filter(|(.., value)| value["count"].as_u64().is_some_and(|count| count > 0)).collect()
}

/// The quantiles of all latencies, stretched towards the slow end.
fn quantiles(latencies: &[(&'static str, &'static str, &Value)]) -> Chart {
    let place = |quantile: f64| -(1.0 - quantile).max(0.000_001).log10();
    // No line is drawn beyond what its number of values can say.
    let most = latencies.iter().filter_map(|(.., value)| value["count"].as_f64()).fold(10.0, f64::max);
    let end = most.log10().clamp(1.0, 5.0);
    let series = latencies.iter().map(|(name, colour, value)| {
        let own_end = value["count"].as_f64().unwrap_or(1.0).max(2.0).log10().min(end);
        let curve = value["curve"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut points: Vec<(f64, Option<f64>)> = curve
            .iter()
            .filter_map(|point| Some((place(point[0].as_f64()?), Some(point[1].as_f64()?))))
            .filter(|(x, _)| *x < own_end)
            .collect();
        points.push((own_end, value["max"].as_f64()));
        Series { name: (*name).to_owned(), colour, points }
    });
    let marks = [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")];
    Chart {
        title: "Latency by percentile".to_owned(),
        unit: "ms",
        scale: Scale::Logarithmic,
        x: (0.0, end),
        x_marks: marks
            .map(|(at, text)| (place(at), text.to_owned()))
            .into_iter()
            .filter(|mark| mark.0 <= end)
            .collect(),
        series: series.collect(),
        bands: Vec::new(),
    }
}

fn latency_table(latencies: &[(&'static str, &'static str, &Value)]) -> String {
    let columns = ["count", "p50", "p90", "p99", "p999", "max"];
    let head = "<tr><th>ms</th><th>count</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th></tr>";
    let mut table = format!("<table>{head}\n");
    for (name, _, value) in latencies {
        let cells =
            columns.map(|column| format!("<td>{}</td>", value[column].as_f64().map_or_else(String::new, number)));
        let _ = writeln!(table, "<tr><th>{}</th>{}</tr>", escape(name), cells.concat());
    }
    table.push_str("</table>\n");
    table
}

/// What happened second by second.
fn timelines(result: &Value) -> String {
    let rows = result["timeline"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(last) = rows.last().and_then(|row| row["second"].as_f64()) else { return String::new() };
    let end = (last + 1.0).max(2.0);
    let column = |name: &str, colour: &'static str, field: &str, gaps: bool| {
        // A second without an entry is one in which nothing happened.
        let mut points: Vec<(f64, Option<f64>)> =
            (0..end as u32).map(|second| (f64::from(second) + 0.5, (!gaps).then_some(0.0))).collect();
        for row in rows {
            let at = row["second"].as_u64().and_then(|at| usize::try_from(at).ok());
            if let (Some(point), Some(value)) = (at.and_then(|at| points.get_mut(at)), row[field].as_f64()) {
                point.1 = Some(value);
            }
        }
        Series { name: name.to_owned(), colour, points }
    };
    let connections = vec![
        column("connected", "s1", "connects", false),
        column("ended", "s4", "closes", false),
        column("failed attempts", "s5", "failures", false),
    ];
    let messages =
        vec![column("received", "s2", "delivered", false), column("acknowledged", "s1", "acknowledged", false)];
    let latency = vec![column("p99", "s4", "p99_ms", true), column("p50", "s2", "p50_ms", true)];
    let mut text = "<h2>Second by second</h2>\n".to_owned();
    let all = [
        ("Connections a second", "a second", Scale::Linear, connections),
        ("Messages a second", "a second", Scale::Linear, messages),
        ("Latency of what was due in that second, at sessions without trouble", "ms", Scale::Logarithmic, latency),
    ];
    for (title, unit, scale, mut series) in all {
        series.retain(|one| one.points.iter().any(|point| point.1.is_some_and(|y| y > 0.0)));
        if series.is_empty() {
            continue;
        }
        let x_marks = crate::plot::marks(0.0, end, Scale::Linear).into_iter().map(|at| (at, format!("{at} s")));
        let (title, bands) = (title.to_owned(), bands(result, end));
        let chart = Chart { title, unit, scale, x: (0.0, end), x_marks: x_marks.collect(), series, bands };
        let _ = write!(text, "<h3>{}</h3>\n{}{}", escape(&chart.title), chart.legend(), chart.svg());
    }
    text
}

/// The parts of the run.
fn bands(result: &Value, end: f64) -> Vec<Band> {
    let at = |name: &str| result["phases_s"][name].as_f64();
    let (Some(from), Some(until)) = (at("measured_from"), at("until")) else { return Vec::new() };
    let band = |from: f64, to: f64, name: &str, trouble| Band { from, to: to.min(end), name: name.to_owned(), trouble };
    let trouble = at("trouble_from").filter(|_| result["troubled"].as_u64().is_some_and(|count| count > 0));
    match (trouble, result["scenario"].as_str()) {
        (Some(trouble), Some("storm")) => {
            let back = at("all_back").unwrap_or(until);
            vec![band(from, trouble, "before", false), band(trouble, back, "cut, until all are back", true)]
        }
        (Some(trouble), Some("slow")) => {
            vec![band(from, trouble, "before", false), band(trouble, until, "some do not read", true)]
        }
        (Some(_), _) => vec![band(from, until, "measured, while some come and go", true)],
        (None, _) => vec![band(from, until, "measured", false)],
    }
}

/// Everything that is only a number.
fn tables(result: &Value) -> String {
    let counts = [
        ("due", "messages or pings that were due"),
        ("acknowledged", "sends answered `sent`"),
        ("unanswered", "without an answer in the end"),
        ("retries", "`retry` answers"),
        ("rejected", "`rejected` answers"),
        ("expected", "deliveries that acknowledged messages make"),
        ("delivered", "of those, arrived"),
        ("missing", "of those, never arrived"),
        ("duplicates", "live copies of what a session had: the protocol allows it"),
        ("pongs", "answers to pings"),
        ("server_pings", "pings of the server, answered"),
        ("troubled", "sessions that the trouble befell"),
        ("reconnects", "sessions connected again"),
        ("given_up", "sessions that the protocol forbids to come back"),
        ("client_cpu_us", "microseconds of CPU of all client processes in the measured phase"),
    ];
    let mut text = "<h2>Counts</h2>\n<table class=\"counts\">\n".to_owned();
    for (name, meaning) in counts {
        if let Some(value) = result[name].as_f64() {
            let (name, meaning) = (name.replace('_', " "), meaning.replace('`', ""));
            let _ = writeln!(text, "<tr><th>{name}</th><td>{}</td><td>{meaning}</td></tr>", number(value));
        }
    }
    text.push_str("</table>\n");
    for (field, title) in [("closes", "Connections that ended"), ("failures", "Attempts that failed")] {
        let Some(entries) = result[field].as_object().filter(|entries| !entries.is_empty()) else { continue };
        let _ = write!(text, "<h3>{title}</h3>\n<table class=\"counts\">\n");
        for (name, count) in entries {
            let count = number(count.as_f64().unwrap_or(0.0));
            let _ = writeln!(text, "<tr><th>{}</th><td>{count}</td></tr>", escape(name));
        }
        text.push_str("</table>\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_stands_alone_and_says_whether_all_arrived() {
        let latency = json!({ "count": 100, "p50": 1.0, "p90": 2.0, "p99": 3.0, "p999": 3.0, "max": 4.0,
            "curve": [[0.0, 0.5], [0.5, 1.0], [0.99, 3.0], [1.0, 4.0]] });
        let mut result = json!({
            "scenario": "storm", "sessions": 1000, "processes": 1, "expected": 10, "delivered": 10, "missing": 0,
            "troubled": 900, "latency_ms": { "sent": latency }, "closes": { "cut": 900 }, "failures": {},
            "phases_s": { "measured_from": 1.0, "trouble_from": 2.0, "all_back": 3.0, "until": 4.0 },
            "timeline": [{ "second": 0, "connects": 5 }, { "second": 3, "connects": 2, "p99_ms": 3.0 }],
        });
        let page = html(&result);
        assert!(page.contains("Every message arrived") && page.contains("cut, until all are back"), "{page}");
        assert!(!page.contains("http://") && !page.contains("https://"), "nothing from outside");
        result["missing"] = 1.into();
        assert!(html(&result).contains("1 of 10 deliveries are missing"));
    }
}
