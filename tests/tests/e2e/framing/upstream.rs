//! Answers as raw upstreams frame them: which pass, which are refused, and which connections are used again.
