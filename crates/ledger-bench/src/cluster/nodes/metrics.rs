//! What nodes count, as Prometheus reads it.

/// The sum of all metrics of a name.
pub(crate) fn sum(metrics: &str, name: &str) -> f64 {
    let values = metrics.lines().filter_map(|line| {
        let (key, value) = line.rsplit_once(' ')?;
        let is_it = key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
        is_it.then(|| value.parse::<f64>().ok())?
    });
    values.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_a_name_are_added_up() {
        let text = "# HELP a_total x\na_total{rpc=\"x\"} 2\na_total{rpc=\"y z\"} 3\na_total_more 7\nb 1.5\n";
        assert!((sum(text, "a_total") - 5.0).abs() < 1e-9);
        assert!((sum(text, "b") - 1.5).abs() < 1e-9);
        assert!(sum(text, "c").abs() < 1e-9);
    }
}
