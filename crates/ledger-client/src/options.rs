//! How to connect.

use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::error::ClientError;

/// How to connect and how long to wait. The defaults notice a dead node within seconds.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a call with one response may take, all its attempts together, and how long a stream may be without
    /// a node that serves it.
    pub timeout: Duration,
    /// How long a connection may be silent while calls are in flight on it before the client probes the node: with a small
    /// call, which servers and proxies allow where they do not allow as many HTTP/2 pings. Each time a server complains of
    /// too many probes, the client halves their rate. It sends none while no call is in flight.
    pub keep_alive: Duration,
    /// How long the connection may be silent after the probe before the client gives it up.
    pub keep_alive_timeout: Duration,
    /// Attempts of a call in all, the first included; 1: no retries; 0: as many as the timeout allows, with
    /// delays that grow to half a second, which outlasts the loss of an owner.
    pub tries: u32,
    /// TLS, for endpoints that begin with `https://`.
    pub tls: Tls,
    /// Largest message the client accepts, bytes.
    pub max_message: usize,
}

/// The certificates that the client trusts and presents, PEM.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Authorities to trust instead of the system's.
    pub ca: Option<Vec<u8>>,
    /// This client's certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name expected in the server's certificate, if it is not the endpoint's host.
    pub domain: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(2),
            keep_alive_timeout: Duration::from_secs(2),
            tries: 0,
            tls: Tls::default(),
            max_message: 512 << 20,
        }
    }
}

impl Options {
    /// With another timeout of calls; see also [`crate::Client::with_timeout`].
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// With so many attempts of a call; 0: as many as the timeout allows.
    #[must_use]
    pub fn with_tries(self, tries: u32) -> Self {
        Self { tries, ..self }
    }

    /// With other TLS settings.
    #[must_use]
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls, ..self }
    }
}

/// The interval of HTTP/2 pings on a connection with calls in flight: servers with gRPC's default policy close
/// connections with more than one in five minutes. Probes find a dead node sooner: see `connection::keepalive`.
const PING_INTERVAL: Duration = Duration::from_secs(310);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// HTTP/2 windows, bytes: how much a node may send before the client reads it.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

impl Options {
    pub(crate) fn endpoint(&self, uri: &str) -> Result<Endpoint, ClientError> {
        let invalid = |reason: String| ClientError::Endpoint { endpoint: uri.to_owned(), reason };
        let endpoint = Endpoint::from_shared(uri.to_owned())
            .map_err(|error| invalid(error.to_string()))?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(false)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        match endpoint.uri().scheme_str() {
            Some("http") => Ok(endpoint),
            Some("https") => {
                endpoint.tls_config(self.tls.config()).map_err(|error| invalid(error.to_string()))
            }
            _ => Err(invalid("it must begin with http:// or https://".to_owned())),
        }
    }
}

impl Tls {
    fn config(&self) -> ClientTlsConfig {
        let mut config = ClientTlsConfig::new();
        config = match &self.ca {
            Some(ca) => config.ca_certificate(Certificate::from_pem(ca)),
            None => config.with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(domain) = &self.domain {
            config = config.domain_name(domain);
        }
        config
    }
}
