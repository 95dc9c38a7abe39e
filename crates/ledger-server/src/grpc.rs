//! What every gRPC call passes: connections, admission, bytes, messages, refusals.

pub mod admission;
pub mod call;
pub mod connection;
pub mod convert;
pub mod encode;
pub mod methods;
pub mod request_body;
pub mod scan;
pub mod status;
pub mod tls;
