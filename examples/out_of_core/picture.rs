//! The picture: hit rate above, resident pages below, one axis of time, as SVG.

use crate::bytes::to_mib;
use crate::options::Options;
use crate::record::RECORD_BYTES;
use crate::units::{PAGE, hit_rate, rate};
use crate::watch::{Sample, Seen};
use softfault::Stats;
use std::fmt::Write;
use std::time::Duration;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 600.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = WIDTH - 84.0;
/// Where the two panels lie, top and bottom.
const HITS: (f64, f64) = (128.0, 298.0);
const PAGES: (f64, f64) = (340.0, 530.0);
/// Points of a curve.
const POINTS: usize = 480;
/// Windows of the hit rate, and how long one is at least.
const WINDOWS: u32 = 120;
const WINDOW_MIN: Duration = Duration::from_millis(24);
/// A window with fewer faults than this has no rate.
const FAULTS_MIN: u64 = 8;

const STYLE: &str = "\
text{font-family:Inter,'Segoe UI','Helvetica Neue',Arial,'DejaVu Sans',sans-serif;font-size:12px;fill:#475569}\
.title{font-size:20px;font-weight:600;fill:#0f172a}.sub{font-size:13px}.name{font-weight:600;fill:#0f172a}\
.phase{font-size:11px;fill:#64748b;letter-spacing:.06em}.end{text-anchor:end}.mid{text-anchor:middle}\
.grid{stroke:#e2e8f0;stroke-width:1}.axis{stroke:#94a3b8;stroke-width:1}\
.hits{stroke:#2563eb}.cached{stroke:#0f766e}.dirty{stroke:#d97706}\
.line{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}.dot{fill:#2563eb}\
.area{fill:#0f766e;fill-opacity:.14}.darea{fill:#f59e0b;fill-opacity:.30}\
.limit{stroke:#dc2626;stroke-width:1.4;stroke-dasharray:6 4}.limitname{fill:#dc2626;font-weight:600}";

/// Draws what was seen.
pub(crate) fn draw(options: &Options, stats: &Stats, seen: &Seen) -> String {
    let took = seen.took().as_secs_f64().max(1e-3);
    let limit = to_mib(options.cache_bytes);
    let high = to_mib(seen.peak(|s| s.cached_bytes)).max(limit) * 1.12;
    let time = Axis { low: 0.0, high: took, from: LEFT, to: RIGHT };
    let hits = Axis { low: 0.0, high: 100.0, from: HITS.1, to: HITS.0 };
    let pages = Axis { low: 0.0, high, from: PAGES.1, to: PAGES.0 };

    let mut svg = Svg::default();
    svg.heading(options, stats, seen);
    svg.phases(&time, seen);
    svg.grid(&time, &hits, HITS, "%");
    svg.grid(&time, &pages, PAGES, "MiB");
    svg.right_axis(&pages);
    svg.seconds(&time);
    svg.hit_rate(&time, &hits, &seen.samples);
    svg.resident(&time, &pages, &thinned(&seen.samples));
    svg.limit(&pages, limit);
    svg.legend();
    svg.finish()
}

/// Turns values into places.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Returns round values on the axis, about `wanted` of them.
    fn ticks(&self, wanted: f64) -> Vec<f64> {
        let rough = (self.high - self.low) / wanted;
        let unit = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * unit).find(|s| *s >= rough).unwrap_or(10.0 * unit);
        let mut at = (self.low / step).ceil() * step;
        let mut ticks = Vec::new();
        while at <= self.high + step * 1e-6 {
            ticks.push(at);
            at += step;
        }
        ticks
    }
}

/// Writes a value with as many digits as neighbouring ticks need.
fn label(value: f64, ticks: &[f64]) -> String {
    let step = ticks.get(1).map_or(1.0, |b| b - ticks[0]);
    let digits = if step >= 0.999 {
        0
    } else if step >= 0.0999 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

/// Leaves as many samples as the picture can show, among them the highest of those that lie close together: a peak must
/// not be lost.
fn thinned(samples: &[Sample]) -> Vec<Sample> {
    let each = samples.len().div_ceil(POINTS).max(1);
    samples.chunks(each).filter_map(|near| near.iter().max_by_key(|s| s.cached_bytes).copied()).collect()
}

/// Returns the hit rate, in percent, of each window of time: its middle in seconds, and `None` where hardly anything
/// faulted.
fn hit_rates(samples: &[Sample]) -> Vec<(f64, Option<f64>)> {
    let took = samples.last().map_or(Duration::ZERO, |s| s.at);
    let window = (took / WINDOWS).max(WINDOW_MIN);
    let mut rates = Vec::new();
    let Some(mut then) = samples.first() else { return rates };
    for now in samples {
        if now.at - then.at < window {
            continue;
        }
        let (faults, major) = (now.faults - then.faults, now.major - then.major);
        let middle = (then.at + (now.at - then.at) / 2).as_secs_f64();
        rates.push((middle, (faults >= FAULTS_MIN).then(|| 100.0 * hit_rate(faults, major).max(0.0))));
        then = now;
    }
    rates
}

/// The text of the picture.
#[derive(Default)]
struct Svg {
    body: String,
}

impl Svg {
    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = self.body.write_fmt(element);
        self.body.push('\n');
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        self.put(format_args!(r#"<text x="{x:.1}" y="{y:.1}" class="{class}">{text}</text>"#));
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.put(format_args!(r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#));
    }

    fn curve(&mut self, points: &[(f64, f64)], class: &str) {
        let d: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.put(format_args!(r#"<polyline points="{}" class="line {class}"/>"#, d.join(" ")));
    }

    fn area(&mut self, points: &[(f64, f64)], bottom: f64, class: &str) {
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        let d: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let (a, b) = (first.0, last.0);
        self.put(format_args!(
            r#"<polygon points="{a:.1},{bottom:.1} {} {b:.1},{bottom:.1}" class="{class}"/>"#,
            d.join(" ")
        ));
    }

    fn heading(&mut self, options: &Options, stats: &Stats, seen: &Seen) {
        let title = format!("Sorting {} through a cache of {}", whole(options.size_bytes), whole(options.cache_bytes));
        self.text(LEFT, 40.0, "title", &title);
        let (faults, major) = (stats["pgfault"], stats["pgmajfault"]);
        let sub = format!(
            "{} records of {RECORD_BYTES} bytes, {} threads: {:.2} s, {:.2} million records/s; {} faults, {:.1} % hits",
            grouped(options.records()),
            options.threads,
            seen.took().as_secs_f64(),
            rate(options.records(), seen.took()) / 1e6,
            grouped(faults),
            100.0 * hit_rate(faults, major),
        );
        self.text(LEFT, 62.0, "sub", &sub);
    }

    /// Draws what was being done: a band and its name, where it is wide enough to have one.
    fn phases(&mut self, time: &Axis, seen: &Seen) {
        for (i, (name, from, to)) in seen.spans().into_iter().enumerate() {
            let (x0, x1) = (time.place(from.as_secs_f64()), time.place(to.as_secs_f64()));
            let (w, shade) = (x1 - x0, if i % 2 == 0 { "#f8fafc" } else { "#f1f5f9" });
            for (top, bottom) in [HITS, PAGES] {
                let h = bottom - top;
                self.put(format_args!(
                    r#"<rect x="{x0:.1}" y="{top:.1}" width="{w:.1}" height="{h:.1}" fill="{shade}"/>"#
                ));
            }
            if w > 44.0 {
                self.text(f64::midpoint(x0, x1), HITS.0 - 8.0, "phase mid", &name.to_uppercase());
            }
        }
    }

    fn grid(&mut self, time: &Axis, axis: &Axis, (top, bottom): (f64, f64), unit: &str) {
        for at in time.ticks(8.0) {
            let x = time.place(at);
            self.line((x, top), (x, bottom), "grid");
        }
        let ticks = axis.ticks(5.0);
        for at in &ticks {
            let y = axis.place(*at);
            self.line((LEFT, y), (RIGHT, y), if *at == 0.0 { "axis" } else { "grid" });
            self.text(LEFT - 8.0, y + 4.0, "end", &format!("{} {unit}", label(*at, &ticks)));
        }
        self.line((LEFT, top), (LEFT, bottom), "axis");
    }

    /// The same heights in pages.
    fn right_axis(&mut self, pages: &Axis) {
        let scale = 1.0 / to_mib(PAGE);
        let axis = Axis { high: pages.high * scale, ..*pages };
        for at in axis.ticks(5.0) {
            let y = axis.place(at);
            self.line((RIGHT, y), (RIGHT + 5.0, y), "axis");
            let text = if at >= 10_000.0 { format!("{}k", at / 1e3) } else { format!("{at:.0}") };
            self.text(RIGHT + 9.0, y + 4.0, "", &text);
        }
        self.line((RIGHT, PAGES.0), (RIGHT, PAGES.1), "axis");
    }

    fn seconds(&mut self, time: &Axis) {
        let ticks = time.ticks(8.0);
        for at in &ticks {
            let x = time.place(*at);
            self.line((x, PAGES.1), (x, PAGES.1 + 5.0), "axis");
            self.text(x, PAGES.1 + 19.0, "mid", &format!("{} s", label(*at, &ticks)));
        }
    }

    /// Draws the hit rate, broken where there is none; a window alone is a dot.
    fn hit_rate(&mut self, time: &Axis, hits: &Axis, samples: &[Sample]) {
        for part in hit_rates(samples).split(|(_, rate)| rate.is_none()) {
            let points: Vec<_> =
                part.iter().filter_map(|(at, rate)| Some((time.place(*at), hits.place((*rate)?)))).collect();
            match points.as_slice() {
                [] => {}
                [(x, y)] => self.put(format_args!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="2" class="dot"/>"#)),
                _ => self.curve(&points, "hits"),
            }
        }
    }

    fn resident(&mut self, time: &Axis, pages: &Axis, samples: &[Sample]) {
        let series = |of: &dyn Fn(&Sample) -> u64| -> Vec<(f64, f64)> {
            samples.iter().map(|s| (time.place(s.at.as_secs_f64()), pages.place(to_mib(of(s))))).collect()
        };
        let cached = series(&|s| s.cached_bytes);
        let dirty = series(&|s| s.dirty_bytes.min(s.cached_bytes));
        self.area(&cached, PAGES.1, "area");
        self.area(&dirty, PAGES.1, "darea");
        self.curve(&dirty, "dirty");
        self.curve(&cached, "cached");
    }

    fn limit(&mut self, pages: &Axis, limit_mib: f64) {
        let y = pages.place(limit_mib);
        self.line((LEFT, y), (RIGHT, y), "limit");
        self.text(RIGHT - 6.0, y - 6.0, "limitname end", &format!("limit {limit_mib} MiB"));
    }

    fn legend(&mut self) {
        let y = 92.0;
        let mut x = LEFT;
        for (class, name, width) in [
            ("hits", "hit rate (faults that found their page cached)", 318.0),
            ("cached", "resident pages", 146.0),
            ("dirty", "of them dirty", 136.0),
            ("limit", "limit of the cache", 150.0),
        ] {
            let class = if class == "limit" { "limit".into() } else { format!("line {class}") };
            self.line((x, y - 4.0), (x + 22.0, y - 4.0), &class);
            self.text(x + 30.0, y, "", name);
            x += width;
        }
        for (x, (top, bottom), name) in
            [(20.0, HITS, "hit rate"), (20.0, PAGES, "resident"), (WIDTH - 14.0, PAGES, "pages")]
        {
            let y = f64::midpoint(top, bottom);
            self.put(format_args!(
                r#"<text x="{x}" y="{y}" class="name mid" transform="rotate(-90 {x} {y})">{name}</text>"#
            ));
        }
        self.text(f64::midpoint(LEFT, RIGHT), HEIGHT - 28.0, "mid", "time since the sort began");
    }

    fn finish(self) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" role=\"img\">\n<title>Hit rate and resident pages of the cache over time</title>\n\
             <style>{STYLE}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{}</svg>\n",
            self.body
        )
    }
}

/// Writes bytes in the unit that makes them a short number.
fn whole(bytes: u64) -> String {
    let mib = to_mib(bytes);
    if mib >= 1024.0 {
        format!("{} GiB", (mib / 102.4).round() / 10.0)
    } else {
        format!("{} MiB", (mib * 10.0).round() / 10.0)
    }
}

/// Writes a number with a comma after every three digits.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let comma = |i: usize| i > 0 && (digits.len() - i).is_multiple_of(3);
    digits.char_indices().flat_map(|(i, c)| comma(i).then_some(',').into_iter().chain([c])).collect()
}
