//! Refusals, as RFC 9457 has them.

use api::status::Problem;
use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use crate::flows::Directory;

/// Why a request is not answered as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub Problem);

impl Refusal {
    fn new(status: StatusCode, title: &str, detail: String) -> Self {
        Self(Problem { title: title.to_owned(), status: status.as_u16(), detail: Some(detail) })
    }

    /// The request is wrong: `title` says in what, `detail` what would be right.
    #[must_use]
    pub fn bad_request(title: &str, detail: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, title, detail.to_string())
    }

    /// What is asked for cannot be had beside what is going on.
    #[must_use]
    pub fn conflict(title: &str, detail: impl ToString) -> Self {
        Self::new(StatusCode::CONFLICT, title, detail.to_string())
    }

    /// The kernel did not answer.
    #[must_use]
    pub fn kernel(detail: impl ToString) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "the kernel refused", detail.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

pub(super) async fn no_such_path(uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "no such path",
        format!("there is no {}; is sluicectl newer than the gateway?", uri.path()),
    )
}

/// The answer to a path that is there, by another method.
pub async fn no_such_method(method: Method, uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "no such method",
        format!("{} does not take {method}; the header `allow` says what it takes", uri.path()),
    )
}

/// The number of a domain that a request names.
pub(super) fn domain_number(names: &Directory, domain: &str) -> Result<u16, Refusal> {
    names.domain_number(domain).ok_or_else(|| {
        let known: Vec<&str> = names.domain_names().collect();
        let detail = format!("there is no domain `{domain}`; there are {}", known.join(", "));
        Refusal::bad_request("no such domain", detail)
    })
}

/// What a request asks by its query, which is refused whole if one name of it is not known.
pub(crate) fn asked<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Refusal> {
    match query {
        Ok(Query(asked)) => Ok(asked),
        Err(error) => Err(Refusal::bad_request("bad query", error.body_text())),
    }
}

/// Has something done that takes long, apart from the threads that serve.
pub(super) async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the gateway failed",
            format!("the answer could not be made: {error}"),
        )
    })
}
