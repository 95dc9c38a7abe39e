//! The table that a run prints: what was asked for, what was measured, and whether it is enough.

use serde_json::{Value, json};

/// One line.
#[derive(Debug)]
pub(super) struct Line {
    /// What was measured.
    pub what: String,
    /// The figure.
    pub measured: String,
    /// What it is held against, of the same run; empty if it stands by itself.
    pub beside: String,
    /// What was asked for; empty: nothing.
    pub target: String,
    /// Whether that was reached, if something was asked for.
    pub reached: Option<bool>,
    /// The figures by name, for programs.
    pub values: Value,
}

impl Line {
    /// A figure that nothing was asked of.
    pub(super) fn plain(what: impl Into<String>, measured: impl Into<String>, values: Value) -> Self {
        let (what, measured) = (what.into(), measured.into());
        Self { what, measured, beside: String::new(), target: String::new(), reached: None, values }
    }

    /// A figure with what was asked for.
    pub(super) fn held(
        what: impl Into<String>,
        measured: impl Into<String>,
        target: impl Into<String>,
        reached: bool,
        values: Value,
    ) -> Self {
        Self { target: target.into(), reached: Some(reached), ..Self::plain(what, measured, values) }
    }

    /// The same, beside another figure of the run.
    pub(super) fn beside(self, beside: impl Into<String>) -> Self {
        Self { beside: beside.into(), ..self }
    }
}

/// The lines so far, printed as they come.
#[derive(Debug)]
pub(super) struct Table {
    is_json: bool,
    begun: bool,
    /// Lines that were asked for something and did not reach it.
    pub missed: usize,
}

impl Table {
    pub(super) fn new(is_json: bool) -> Self {
        Self { is_json, begun: false, missed: 0 }
    }

    /// What the figures are of, once before the first line.
    pub(super) fn head(&mut self, machine: &str, what: &str) {
        if self.is_json {
            println!("{}", json!({ "machine": machine, "what": what }));
        } else {
            println!("{machine}; {what}\n");
        }
    }

    pub(super) fn push(&mut self, row: u8, line: &Line) {
        self.missed += usize::from(line.reached == Some(false));
        let Line { what, measured, beside, target, reached, values } = line;
        if self.is_json {
            let object = json!({
                "row": row, "what": what, "measured": measured, "beside": beside, "target": target,
                "reached": reached, "values": values,
            });
            println!("{object}");
            return;
        }
        if !self.begun {
            self.begun = true;
            println!("| row | what | measured | beside, in this run | target | reached |");
            println!("| --- | --- | --- | --- | --- | --- |");
        }
        let reached = match reached {
            None => "",
            Some(true) => "yes",
            Some(false) => "**no**",
        };
        println!("| {row} | {what} | {measured} | {beside} | {target} | {reached} |");
    }
}
