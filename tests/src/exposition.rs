//! The text of `/metrics`, as a Prometheus reads it.
//!
//! Invariant: each sample belongs to the family of the `# TYPE` line before it, and a text that is
//! cut off is no exposition.

use std::collections::{BTreeMap, BTreeSet};

/// All metrics of one scrape, by the name of the family.
#[derive(Debug, Clone, Default)]
pub struct Exposition(pub BTreeMap<String, Family>);

/// One metric.
#[derive(Debug, Clone, Default)]
pub struct Family {
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: String,
    pub help: String,
    /// By name and labels, as in the text.
    pub samples: BTreeMap<String, f64>,
}

impl Exposition {
    /// Panics at what no Prometheus would read.
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with("# EOF\n"), "the end is missing: {text}");
        let mut all = Self::default();
        let mut name = String::new();
        for line in text.lines() {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next()) {
                (Some("#"), Some("HELP")) => {
                    words.next().unwrap().clone_into(&mut name);
                    let family = Family { help: words.next().unwrap().to_owned(), ..Family::default() };
                    assert!(all.0.insert(name.clone(), family).is_none(), "{name} is there twice");
                }
                (Some("#"), Some("TYPE")) => {
                    assert_eq!(words.next(), Some(&*name), "its help comes first");
                    words.next().unwrap().clone_into(&mut all.0.get_mut(&name).unwrap().kind);
                }
                (Some("#"), _) => {}
                _ => {
                    let (sample, value) = line.rsplit_once(' ').unwrap();
                    assert!(sample.starts_with(&name), "{sample} follows the type of {name}");
                    let samples = &mut all.0.get_mut(&name).unwrap().samples;
                    let before = samples.insert(sample.to_owned(), value.parse().unwrap());
                    assert!(before.is_none(), "{sample} is there twice");
                }
            }
        }
        all
    }

    /// The value of a sample, by its name and labels.
    pub fn value(&self, sample: &str) -> Option<f64> {
        self.0.values().find_map(|family| family.samples.get(sample)).copied()
    }

    /// The samples whose value is another one in `later`; one that is missing counts as zero. Of a
    /// histogram, its counts alone.
    pub fn moved(&self, later: &Self) -> BTreeSet<String> {
        let samples = |all: &Self| -> BTreeMap<String, f64> {
            all.0.values().flat_map(Family::figures).map(|(name, value)| (name.to_owned(), value)).collect()
        };
        let (before, after) = (samples(self), samples(later));
        let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        names
            .into_iter()
            .filter(|name| before.get(*name).unwrap_or(&0.0) != after.get(*name).unwrap_or(&0.0))
            .cloned()
            .collect()
    }
}

impl Family {
    /// The samples, of a histogram the counts alone.
    fn figures(&self) -> impl Iterator<Item = (&str, f64)> {
        let is_histogram = self.kind == "histogram";
        let name = |sample: &str| sample.split('{').next().unwrap_or_default().to_owned();
        let samples =
            self.samples.iter().filter(move |(sample, _)| !is_histogram || name(sample).ends_with("_count"));
        samples.map(|(sample, value)| (sample.as_str(), *value))
    }

    /// The names of the labels of its samples, without a histogram's `le`.
    pub fn labels(&self) -> BTreeSet<&str> {
        let labels = self.samples.keys().filter_map(|sample| sample.split_once('{'));
        // No value here has a quote with a comma after it.
        let pairs = labels.flat_map(|(_, labels)| labels.trim_end_matches('}').split("\","));
        pairs.filter_map(|pair| Some(pair.split_once('=')?.0)).filter(|label| *label != "le").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a Some a.\n# TYPE a counter\na_total{x=\"1\",y=\"b, c\"} 1\n\
        # HELP d Some d.\n# TYPE d histogram\nd_sum 1.5\nd_count 2\nd_bucket{le=\"1\"} 1\n# EOF\n";

    #[test]
    fn moved_samples_are_found() {
        let before = Exposition::parse(TEXT);
        let later = TEXT.replace("_count 2", "_count 3").replace("y=\"b, c\"} 1", "y=\"b, c\"} 2");
        let later = Exposition::parse(&later);
        let moved: Vec<_> = before.moved(&later).into_iter().collect();
        assert_eq!(moved, ["a_total{x=\"1\",y=\"b, c\"}", "d_count"]);
        assert!(before.moved(&before).is_empty());
        assert_eq!(before.0["a"].labels().into_iter().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!((before.0["d"].labels().len(), before.value("d_sum")), (0, Some(1.5)));
    }
}
