//! Golden plans of single situations.
