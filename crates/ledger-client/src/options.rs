//! How to connect.

use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::ClientError;

/// How to connect and how long to wait. The defaults notice a dead node within seconds.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a call with one answer may take, all its tries together, and how long a stream may be without
    /// a node that serves it.
    pub timeout: Duration,
    /// How long a connection may be silent while calls are under way on it before the node is asked whether it is there:
    /// by a small call, which servers and proxies allow where they do not allow as many HTTP/2 pings. A server that finds
    /// it too often is asked half as often, each time that it says so. Nothing is asked while no call is under way.
    pub keep_alive: Duration,
    /// How long it may be silent after that before the connection is given up.
    pub keep_alive_timeout: Duration,
    /// Tries of a call in all, the first included; 1: none is repeated; 0: as many as the time allows, with
    /// pauses that grow to half a second, which outlasts the loss of an owner.
    pub tries: u32,
    /// TLS, for endpoints that begin with `https://`.
    pub tls: Tls,
    /// Largest message taken, bytes.
    pub max_message: usize,
}

/// Certificates, PEM.
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
    /// With another time that a call may take; see also [`crate::Client::with_timeout`].
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// With so many tries of a call; 0: as many as the time allows.
    #[must_use]
    pub fn with_tries(self, tries: u32) -> Self {
        Self { tries, ..self }
    }

    /// With TLS as it is not by default.
    #[must_use]
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls, ..self }
    }
}

/// How often an HTTP/2 ping goes over a connection with calls under way: servers with gRPC's default policy end
/// connections with more than one in five minutes. Whether a node is there is found out otherwise, see `pulse`.
const PING: Duration = Duration::from_secs(310);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// An HTTP/2 window, bytes: what may be under way unread.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

impl Options {
    pub(crate) fn endpoint(&self, uri: &str) -> Result<Endpoint, ClientError> {
        let invalid = |reason: String| ClientError::Endpoint { endpoint: uri.to_owned(), reason };
        let endpoint = Endpoint::from_shared(uri.to_owned())
            .map_err(|error| invalid(error.to_string()))?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING)
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
