//! Requests as raw clients frame them: which are served, and which are refused before an upstream sees them.
