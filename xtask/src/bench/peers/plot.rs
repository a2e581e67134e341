//! Plots as SVG: a metric by number of Services, one line for each proxy, both axes logarithmic.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::document::name;
use super::figures::Figures;

/// Metric, file, heading, factor to the unit of the axis.
const PLOTS: [(&str, &str, &str, f64); 5] = [
    ("load_seconds", "load.svg", "Full load [s]", 1.0),
    ("change_seconds", "change.svg", "One change [s]", 1.0),
    ("memory_bytes", "memory.svg", "Resident memory [MB]", 1e-6),
    ("connections_per_second_service", "connections.svg", "New connections through a ClusterIP [1/s]", 1.0),
    ("connections_p99_seconds_service", "latency.svg", "p99 of a new connection [ms]", 1e3),
];
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 110, 180), RGBColor(200, 80, 0), RGBColor(110, 110, 110), RGBColor(0, 140, 90)];

/// Services and value, for each proxy.
type Lines = Vec<(String, Vec<(f64, f64)>)>;

/// Writes the plots that there are figures for; their files and headings.
pub(super) fn write(figures: &Figures, directory: &Path) -> Result<Vec<(&'static str, &'static str)>> {
    std::fs::create_dir_all(directory)?;
    let mut written = Vec::new();
    for (metric, file, heading, factor) in PLOTS {
        let lines = lines(figures, metric, factor);
        if lines.iter().any(|(_, points)| points.len() > 1) {
            draw(&lines, heading, &directory.join(file)).map_err(|error| anyhow!("{file}: {error}"))?;
            written.push((file, heading));
        }
    }
    Ok(written)
}

fn lines(figures: &Figures, metric: &str, factor: f64) -> Lines {
    let points = |proxy: &String| {
        let point = |size: usize| {
            let spread = figures.spread(proxy, size, metric)?;
            Some((size as f64, spread.median * factor))
        };
        figures.sizes().into_iter().filter_map(point).filter(|(_, value)| *value > 0.0).collect()
    };
    figures.proxies().iter().map(|proxy| (name(proxy), points(proxy))).collect()
}

/// A range that holds all values, a little wider.
fn range(values: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(0.0, f64::max);
    low / 1.6..high * 1.6
}

fn draw(lines: &Lines, heading: &str, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|(_, points)| points.iter());
    let across = range(points().map(|point| point.0));
    let up = range(points().map(|point| point.1));
    let root = SVGBackend::new(path, (720, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(heading, ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(across.log_scale(), up.log_scale())?;
    chart.configure_mesh().x_desc("Services").light_line_style(WHITE).draw()?;
    for ((name, points), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
        chart
            .draw_series(line)?
            .label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}
