//! What a request to the console asks for, and how it is refused.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use ledger_core::Sequence;
use serde::Deserialize;
use tonic::Code;

use crate::grpc::status::Refusal;

/// What a request asks for; each path uses some of it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct QueryParameters {
    pub(super) id: String,
    pub(super) prefix: String,
    pub(super) key: String,
    pub(super) after: String,
    pub(super) limit: u32,
}

impl QueryParameters {
    /// The sequence that entries come after.
    pub(super) fn sequence(&self) -> Result<Sequence, Refusal> {
        if self.after.is_empty() {
            return Ok(Sequence(0));
        }
        let wrong = || Refusal::field("after", "after is not a sequence: send a number");
        self.after.parse().map(Sequence).map_err(|_| wrong())
    }
}

/// A refusal as HTTP has it.
pub(super) struct HttpRefusal(Refusal);

impl From<Refusal> for HttpRefusal {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for HttpRefusal {
    fn into_response(self) -> Response {
        let status = match self.0.code {
            Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(serde_json::json!({ "error": self.0.message }))).into_response()
    }
}
