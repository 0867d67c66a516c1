//! gateway/flow-export
