//! What goes where: data to standard output, words to standard error.

use std::io::Write as _;

use crate::cli::Format;

/// Prints results in the format that was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Prints a result: JSON for programs, `text` for users.
    pub(crate) fn data(&self, json: &serde_json::Value, text: &str) {
        let printed = match self.format {
            Format::Json => format!("{json:#}\n"),
            Format::Text if text.is_empty() => String::new(),
            Format::Text => format!("{}\n", text.trim_end()),
        };
        // A reader that went away is not our failure.
        let _ = std::io::stdout().write_all(printed.as_bytes());
    }

    /// Prints a table for users, the rows' JSON for programs.
    pub(crate) fn table(&self, json: &serde_json::Value, header: &[&str], rows: &[Vec<String>]) {
        let mut widths: Vec<usize> = header.iter().map(|cell| cell.len()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: Vec<&str>| {
            let padded: Vec<String> =
                cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            padded.join("  ").trim_end().to_owned()
        };
        let mut lines = vec![line(header.to_vec())];
        lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
        self.data(json, &lines.join("\n"));
    }

    pub(crate) fn warn(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "warning: {text}");
    }

    /// Prints an error with its causes and, where there is one, a hint.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
        let _ = writeln!(std::io::stderr(), "error: {}", causes.join(": "));
        if let Some(hint) = error.downcast_ref::<Hint>() {
            let _ = writeln!(std::io::stderr(), "\nhint: {}", hint.hint);
        }
    }
}

/// An error that knows what to try next.
#[derive(Debug)]
pub(crate) struct Hint {
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hint {}

pub(crate) fn hint(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Hint { message: message.into(), hint: hint.into() })
}
