//! The figures as bars: a panel for each measure, a bar for each peer, a line from the smallest to
//! the largest run.
//!
//! Rectangles and text need no library, and the same figures make the same file.

use std::fmt::Write as _;

use super::figures::{Figures, Spread};
use super::measure::Measure;
use crate::peer::Kind;

const WIDTH: f64 = 860.0;
const BAR: f64 = 18.0;
const GAP: f64 = 6.0;
const TITLE: f64 = 26.0;
const LEFT: f64 = 110.0;
/// The length of the longest bar; its figure follows it.
const LONGEST: f64 = 560.0;

/// One SVG with a panel for every measure that has a value.
pub(super) fn svg(figures: &Figures) -> String {
    let mut panels = String::new();
    let mut top = 10.0;
    for measure in Measure::all() {
        let bars: Vec<_> = figures
            .peers()
            .into_iter()
            .filter_map(|peer| Some((peer, figures.spread(measure, peer)?)))
            .collect();
        if !bars.is_empty() {
            top = panel(&mut panels, top, measure, &bars);
        }
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{top:.0}\" viewBox=\"0 0 {WIDTH} {top:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{panels}</svg>\n"
    )
}

/// Draws one measure; gives the top of the next one.
fn panel(out: &mut String, top: f64, measure: Measure, bars: &[(Kind, Spread)]) -> f64 {
    let largest = bars.iter().map(|(_, spread)| spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let length = |value: f64| value.max(0.0) / largest * LONGEST;
    let _ = writeln!(
        out,
        "<text x=\"10\" y=\"{:.0}\" font-weight=\"bold\">{}</text>",
        top + 14.0,
        escaped(measure.label())
    );
    let mut y = top + TITLE;
    for (peer, spread) in bars {
        let fill = if *peer == Kind::Countersign { "#1f6f54" } else { "#9aa5b1" };
        let (text, middle) = (y + BAR - 5.0, y + BAR / 2.0);
        let (width, from, to) = (length(spread.median), LEFT + length(spread.min), LEFT + length(spread.max));
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{text:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT:.0}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR:.0}\" fill=\"{fill}\"/>\
             <line x1=\"{from:.1}\" y1=\"{middle:.1}\" x2=\"{to:.1}\" y2=\"{middle:.1}\" stroke=\"#222\"/>\
             <text x=\"{:.1}\" y=\"{text:.1}\">{:.1} {}</text>",
            LEFT - 8.0,
            peer.name(),
            LEFT + length(spread.max) + 8.0,
            spread.median,
            measure.unit(),
        );
        y += BAR + GAP;
    }
    y + 14.0
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::figures;
    use super::*;

    #[test]
    fn bars_are_scaled_to_the_largest_value() {
        let mut figures = figures(&[(Kind::Countersign, &[50.0]), (Kind::Nginx, &[100.0])]);
        figures.add_failed(Measure::New, Kind::Caddy, 0, "refused".to_owned(), ());
        let svg = svg(&figures);
        assert!(svg.contains("width=\"560.0\"") && svg.contains("width=\"280.0\""), "{svg}");
        assert!(svg.contains("nginx") && !svg.contains("caddy"));
        assert_eq!(svg.matches("<rect").count(), 3, "the ground and two bars");
    }

    #[test]
    fn a_value_of_zero_has_a_bar_of_no_width() {
        assert!(svg(&figures(&[(Kind::Nginx, &[0.0])])).contains("width=\"0.0\""));
    }
}
