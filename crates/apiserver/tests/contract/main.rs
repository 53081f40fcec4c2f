//! The API's contract, checked over `ApiServer::call` with the embedded store, and once over TLS.

mod common;
mod verbs;
