//! JSON lines: one object a line, field names as in [`FlowRecord`].

use crate::FlowRecord;

/// Appends a record and the end of the line.
///
/// # Errors
/// None for a record as it is defined; the type belongs to the encoder.
pub fn append(line: &mut Vec<u8>, record: &FlowRecord) -> serde_json::Result<()> {
    serde_json::to_writer(&mut *line, record)?;
    line.push(b'\n');
    Ok(())
}

/// Reads a line back.
///
/// # Errors
/// The line is no record.
pub fn parse(line: &str) -> serde_json::Result<FlowRecord> {
    serde_json::from_str(line)
}
