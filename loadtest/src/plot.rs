//! Line charts as inline SVG, with nothing from outside.

use std::fmt::Write as _;

/// A line of a chart.
pub struct Series {
    /// What it shows.
    pub name: String,
    /// Which colour of the page: `s1` to `s6`.
    pub colour: &'static str,
    /// (x, y), x rising; a missing y breaks the line.
    pub points: Vec<(f64, Option<f64>)>,
}

/// How an axis maps values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By powers of ten.
    Logarithmic,
}

/// A stretch of the x axis with a name.
pub struct Band {
    /// From here.
    pub from: f64,
    /// To here.
    pub to: f64,
    /// What happens there.
    pub name: String,
    /// Something is made to go wrong there.
    pub trouble: bool,
}

/// A chart.
pub struct Chart {
    /// What a screen reader says.
    pub title: String,
    /// The unit on the y axis.
    pub unit: &'static str,
    /// How the y axis maps.
    pub scale: Scale,
    /// Where the x axis begins and ends.
    pub x: (f64, f64),
    /// Where the x axis has marks, and what they say.
    pub x_marks: Vec<(f64, String)>,
    /// The lines.
    pub series: Vec<Series>,
    /// The stretches.
    pub bands: Vec<Band>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 30.0;

impl Chart {
    /// The SVG.
    pub fn svg(&self) -> String {
        let (low, high) = self.range();
        let mut svg =
            format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n", escape(&self.title));
        self.bands(&mut svg);
        for mark in marks(low, high, self.scale) {
            let y = self.y(mark, low, high);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                WIDTH - RIGHT
            );
            let _ =
                writeln!(svg, "<text class=\"y\" x=\"{}\" y=\"{:.1}\">{}</text>", LEFT - 8.0, y + 4.0, number(mark));
        }
        let _ = writeln!(svg, "<text class=\"unit\" x=\"{}\" y=\"14\">{}</text>", LEFT - 8.0, self.unit);
        for (at, text) in &self.x_marks {
            let x = self.place(*at);
            let _ = writeln!(svg, "<text class=\"x\" x=\"{x:.1}\" y=\"{}\">{}</text>", HEIGHT - 8.0, escape(text));
        }
        for series in &self.series {
            self.line(&mut svg, series, low, high);
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// The names of the lines with their colours.
    pub fn legend(&self) -> String {
        let entries = self
            .series
            .iter()
            .map(|series| format!("<span><i class=\"{}\"></i>{}</span>", series.colour, escape(&series.name)));
        format!("<p class=\"legend\">{}</p>\n", entries.collect::<String>())
    }

    fn bands(&self, svg: &mut String) {
        for band in &self.bands {
            let (from, to) = (self.place(band.from.max(self.x.0)), self.place(band.to.min(self.x.1)));
            let (width, height) = ((to - from).max(1.0), HEIGHT - TOP - BOTTOM);
            let _ = write!(
                svg,
                "<rect class=\"{}\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\"/>",
                if band.trouble { "trouble" } else { "band" }
            );
            let _ = writeln!(
                svg,
                "<text class=\"band\" x=\"{:.1}\" y=\"{}\">{}</text>",
                from + 4.0,
                TOP - 6.0,
                escape(&band.name)
            );
        }
    }

    fn line(&self, svg: &mut String, series: &Series, low: f64, high: f64) {
        let mut path = String::new();
        let mut down = false;
        for &(x, y) in &series.points {
            let Some(y) = y.filter(|&y| self.scale == Scale::Linear || y > 0.0) else {
                down = false;
                continue;
            };
            let _ = write!(path, "{}{:.1} {:.1}", if down { 'L' } else { 'M' }, self.place(x), self.y(y, low, high));
            down = true;
        }
        let _ = writeln!(
            svg,
            "<path class=\"{}\" d=\"{path}\"><title>{}</title></path>",
            series.colour,
            escape(&series.name)
        );
        // Points that can be asked for their value, where they are few enough to be told apart.
        if series.points.len() <= 150 {
            for &(x, y) in &series.points {
                let Some(y) = y.filter(|&y| self.scale == Scale::Linear || y > 0.0) else { continue };
                let _ = writeln!(
                    svg,
                    "<circle class=\"{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"1.8\"><title>{}: {} {}</title></circle>",
                    series.colour,
                    self.place(x),
                    self.y(y, low, high),
                    escape(&series.name),
                    number(y),
                    self.unit
                );
            }
        }
    }

    fn range(&self) -> (f64, f64) {
        let values = || self.series.iter().flat_map(|series| &series.points).filter_map(|point| point.1);
        let high = values().fold(0.0, f64::max);
        if self.scale == Scale::Linear {
            return (0.0, if high > 0.0 { high * 1.05 } else { 1.0 });
        }
        let low = values().filter(|&value| value > 0.0).fold(f64::INFINITY, f64::min);
        if !low.is_finite() {
            return (0.1, 10.0);
        }
        // Whole powers of ten below; above as much as is needed.
        (10f64.powf(low.log10().floor()), (high * 1.3).max(low * 10.0))
    }

    fn place(&self, x: f64) -> f64 {
        let share = (x - self.x.0) / (self.x.1 - self.x.0).max(f64::MIN_POSITIVE);
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64, low: f64, high: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - low) / (high - low),
            Scale::Logarithmic => (value / low).log10() / (high / low).log10(),
        };
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }
}

/// Where an axis has marks: at round numbers.
pub fn marks(low: f64, high: f64, scale: Scale) -> Vec<f64> {
    if scale == Scale::Logarithmic {
        let powers = low.log10().round() as i32..=high.log10().floor() as i32;
        let few = powers.clone().count() <= 2;
        let steps: &[f64] = if few { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let all = powers.flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
        return all.filter(|&mark| mark >= low * 0.999 && mark <= high).collect();
    }
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|&step| step >= rough).unwrap_or(power);
    (0..).map(|count| low + f64::from(count) * step).take_while(|&mark| mark <= high).collect()
}

/// A number as a person wants to read it.
pub fn number(value: f64) -> String {
    let whole = |value: f64| {
        let digits = format!("{value:.0}");
        let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group).into_owned());
        groups.collect::<Vec<_>>().join(",")
    };
    match value.abs() {
        0.0 => "0".to_owned(),
        small if small < 0.095 => format!("{value:.3}"),
        small if small < 0.95 => format!("{value:.2}").trim_end_matches('0').to_owned(),
        middle if middle < 99.5 && value.fract().abs() > 0.04 => format!("{value:.1}"),
        _ => whole(value),
    }
}

/// Text for HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stand_at_round_numbers() {
        assert_eq!(marks(0.0, 105.0, Scale::Linear), [0.0, 50.0, 100.0]);
        assert_eq!(marks(0.0, 2_100.0, Scale::Linear), [0.0, 500.0, 1_000.0, 1_500.0, 2_000.0]);
        assert_eq!(marks(0.1, 150.0, Scale::Logarithmic), [0.1, 1.0, 10.0, 100.0]);
        assert_eq!(marks(1.0, 30.0, Scale::Logarithmic), [1.0, 2.0, 5.0, 10.0, 20.0]);
    }

    #[test]
    fn numbers_are_for_people() {
        let texts = [0.0, 0.0123, 0.5, 4.14, 5.0, 123.4, 1_234_567.0].map(number);
        assert_eq!(texts, ["0", "0.012", "0.5", "4.1", "5", "123", "1,234,567"]);
    }

    #[test]
    fn a_gap_breaks_the_line_and_names_cannot_break_the_page() {
        let points = vec![(0.0, Some(1.0)), (1.0, None), (2.0, Some(3.0))];
        let series = vec![Series { name: "<b>".to_owned(), colour: "s1", points }];
        let (title, bands) = ("a \"chart\"".to_owned(), Vec::new());
        let chart =
            Chart { title, unit: "ms", scale: Scale::Linear, x: (0.0, 2.0), x_marks: Vec::new(), series, bands };
        let svg = chart.svg();
        assert_eq!(svg.matches('M').count(), 2, "{svg}");
        assert!(!svg.contains("<b>") && svg.contains("a &quot;chart&quot;"));
    }
}
