//! Every metric Tidegate has, declared once: name, kind, labels, help.
//!
//! The table in `docs/operations.md` is written from this one by a test. [`Counter`] and [`Gauge`] are the fixed
//! cells of a worker: each names the metric it belongs to and its label values, so that counting is an array index.

/// Kind of a metric, in Prometheus' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative buckets, a sum and a count.
    Histogram,
}

impl Kind {
    /// The word in the exposition format.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    /// Full name, with the unit last.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
    /// Label names, in the order of the label values.
    pub labels: &'static [&'static str],
    /// A sentence for a person.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($id:ident = $name:literal, $kind:ident, [$($label:literal),*], $help:literal;)+) => {
        /// A metric; see [`Metric::row`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Metric { $(#[doc = $help] $id,)+ }

        impl Metric {
            /// Every metric, in the order of the table.
            pub const ALL: &'static [Metric] = &[$(Metric::$id,)+];

            /// The row of the table.
            pub const fn row(self) -> &'static Row {
                match self {
                    $(Metric::$id => &Row { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help },)+
                }
            }
        }
    };
}

metrics! {
    Requests = "tidegate_requests_total", Counter, ["site", "route", "method", "status"], "Requests ended, by site, route, method and status class.";
    RequestDuration = "tidegate_request_duration_seconds", Histogram, ["site", "route"], "Time from the request head to the last byte of the answer.";
    RequestBytes = "tidegate_request_bytes_total", Counter, ["site", "route"], "Bytes of request bodies received from clients.";
    ResponseBytes = "tidegate_response_bytes_total", Counter, ["site", "route"], "Bytes of response bodies sent to clients.";
    UpstreamFirstByte = "tidegate_upstream_first_byte_seconds", Histogram, ["site"], "Time from the request sent to the first byte of the backend's answer.";
    LimitVerdicts = "tidegate_limit_verdicts_total", Counter, ["site", "route", "verdict"], "Decisions of the rate limits.";
    WouldBlock = "tidegate_would_block_total", Counter, ["site", "policy"], "Requests that a policy in shadow would have refused.";
    Auth = "tidegate_auth_total", Counter, ["kind", "result"], "Requests whose client was asked who it is, by how (basic, forward, jwt, client-cert) and by what came out: accepted, missing (nothing was shown), wrong, denied (good and not enough), redirected (to where one says it), busy (too much waited), unavailable (nobody could tell).";
    AuthRemembered = "tidegate_auth_answers_remembered_total", Counter, [], "Requests let in by an answer of another service that came earlier (`cache` of forward auth).";
    AuthHashes = "tidegate_auth_hashes_total", Counter, [], "Password hashes asked for; the others were remembered.";
    DoctorFindings = "tidegate_doctor_findings", Gauge, ["finding"], "Signs that client addresses are not those of clients: proxies that are not trusted, one address with most of the requests.";
    PatchMatches = "tidegate_patch_matches_total", Counter, ["site", "rule", "mode"], "Requests that a virtual patch recognised; of several rules the first in order counts.";
    PatchRules = "tidegate_patch_rules", Gauge, [], "Rules of virtual patches in force.";
    PatchPacks = "tidegate_patch_packs", Gauge, ["state"], "Packs of virtual patches: in force, refused, and of those in force the ones that are an earlier version because the pack is refused or gone (kept).";
    BandwidthWaits = "tidegate_bandwidth_waits_total", Counter, ["direction"], "Waits of bodies for their bandwidth limit: down (answers) or up (uploads).";
    Outcomes = "tidegate_outcomes_total", Counter, ["outcome", "blame"], "Ways requests and connections ended; see the outcome table.";
    ConnectionsOpened = "tidegate_connections_opened_total", Counter, ["listener"], "Client connections accepted.";
    ConnectionsClosed = "tidegate_connections_closed_total", Counter, ["listener"], "Client connections closed.";
    ConnectionsActive = "tidegate_connections_active", Gauge, ["listener"], "Client connections open now.";
    ConnectionsResting = "tidegate_connections_resting", Gauge, [], "HTTP/1 client connections that have waited for a request for half a second and keep no buffers.";
    ConnectionsRefused = "tidegate_connections_refused_total", Counter, ["reason"], "Client connections closed at once because a cap was reached.";
    Bans = "tidegate_bans", Gauge, ["by"], "Bans in force: of clients by their offences, by command, and networks of the file.";
    BansMade = "tidegate_bans_by_offences_total", Counter, [], "Clients banned by their offences, those in shadow included.";
    BansGivenWay = "tidegate_bans_given_way_total", Counter, [], "Bans that ended early, or were not made, because there was no room for more.";
    Handshakes = "tidegate_tls_handshakes_total", Counter, ["version", "kind"], "TLS handshakes completed with clients.";
    HandshakeFailures = "tidegate_tls_handshake_failures_total", Counter, ["reason"], "TLS handshakes with clients that failed.";
    Floods = "tidegate_floods_total", Counter, ["reason"], "HTTP/2 connections closed because of a flood, by what there was too much of.";
    FloodDelays = "tidegate_flood_delays_total", Counter, [], "Client connections that waited before their TLS handshake because others of the same address were closed for floods.";
    ResetEarly = "tidegate_requests_reset_early_total", Counter, [], "HTTP/2 requests that their clients reset before anything was done for them; they stand in no other count.";
    HandshakesActive = "tidegate_tls_handshakes_active", Gauge, ["waiting"], "TLS handshakes in flight, by what they wait for: their client, or a turn of the processor.";
    ClientCerts = "tidegate_client_certificates_total", Counter, ["result"], "Connections to sites that ask for client certificates, by whether one was shown; refused ones are failed handshakes.";
    ClientCrl = "tidegate_client_crl_next_update_timestamp_seconds", Gauge, ["site"], "When the first of the site's revocation lists is past its date, in seconds since 1970.";
    SiteConnections = "tidegate_site_connections_active", Gauge, ["site"], "Open connections of sites that have a cap.";
    Descriptors = "tidegate_descriptors", Gauge, ["kind"], "File descriptors of connections to clients and backends: used, and the most they may use.";
    UpstreamOpened = "tidegate_upstream_connections_opened_total", Counter, [], "Connections to backends opened.";
    UpstreamReused = "tidegate_upstream_connections_reused_total", Counter, [], "Requests sent on a connection that was already open.";
    UpstreamFailures = "tidegate_upstream_connection_failures_total", Counter, ["reason"], "Connections to backends that could not be opened.";
    UpstreamPlaintext = "tidegate_upstream_plaintext_bytes_total", Counter, [], "Bytes of bodies exchanged in plain text with backends on other machines.";
    UpstreamEvicted = "tidegate_upstream_connections_evicted_total", Counter, [], "Unused connections to backends closed by age or by the pool's cap.";
    UpstreamStale = "tidegate_upstream_connections_stale_total", Counter, [], "Pooled connections that turned out closed when a request was to be sent; it was sent on another.";
    UpstreamStreamsRefused = "tidegate_upstream_streams_refused_total", Counter, [], "Requests that an HTTP/2 backend gave back unprocessed (REFUSED_STREAM, GOAWAY).";
    Retries = "tidegate_retries_total", Counter, ["cause"], "Tries after the first, by why the one before failed: connect, reset, timeout, or the backend's status.";
    RetryBudget = "tidegate_retry_budget_exhausted_total", Counter, [], "Requests not tried again because the retry budget of their service was spent.";
    QueueWaits = "tidegate_queue_waits_total", Counter, ["result"], "Requests for which a service had no room, by how their wait ended: served, full (there was no place in the queue), timeout, or gone (their client).";
    QueueLength = "tidegate_queue_length", Gauge, ["service"], "Requests that wait for room at a service with a `capacity`.";
    ServiceInFlight = "tidegate_service_in_flight", Gauge, ["service"], "Requests in flight at all backends of a service with a `capacity`.";
    ServiceLimit = "tidegate_service_in_flight_max", Gauge, ["service"], "Requests that may be in flight at all backends of a service that has a limit as a whole.";
    BreakerOpen = "tidegate_breaker_open", Gauge, ["service"], "1 where the breaker of a service is open and requests are refused.";
    Shed = "tidegate_shed_total", Counter, ["reason"], "Requests refused because the node has too much to do, by reason: a tenant's share (share), its share of connections to backends (share-backends), an overload (overload).";
    OverloadStage = "tidegate_overload_stage", Gauge, [], "What is given up: 0 nothing, 1 connections are not kept, 2 new ones are refused, 3 requests are refused.";
    Pressure = "tidegate_pressure_ratio", Gauge, ["cause"], "What is used of what there may be: how late workers are, memory, connections, descriptors, requests in flight.";
    ShareWaits = "tidegate_share_waits_total", Counter, [], "Times that a connection of a tenant over its share waited for the processor.";
    TenantShare = "tidegate_tenant_share_ratio", Gauge, ["tenant"], "Processor time a tenant used lately, as a part of its share, on the worker where that was most. Of the tenants that use most.";
    TenantConnections = "tidegate_tenant_connections", Gauge, ["tenant"], "Open connections of a tenant's clients.";
    TenantUpstream = "tidegate_tenant_upstream_connections", Gauge, ["tenant"], "Open connections to a tenant's backends.";
    TenantInFlight = "tidegate_tenant_in_flight", Gauge, ["tenant"], "Requests of a tenant in flight.";
    TenantBuffered = "tidegate_tenant_buffered_bytes", Gauge, ["tenant"], "Bytes of a tenant's bodies that wait in memory to be sent on.";
    TenantCpu = "tidegate_tenant_cpu_seconds_total", Counter, ["tenant"], "Processor time used for a tenant's clients.";
    TenantShed = "tidegate_tenant_shed_total", Counter, ["tenant"], "Connections and requests of a tenant refused because it had more than its share.";
    Tunnels = "tidegate_tunnels_total", Counter, [], "Connections upgraded to a tunnel (WebSocket and others).";
    TunnelsActive = "tidegate_tunnels_active", Gauge, [], "Tunnels open now.";
    TunnelBytes = "tidegate_tunnel_bytes_total", Counter, ["direction"], "Bytes moved through tunnels, as seen from the client.";
    AccessDropped = "tidegate_access_records_dropped_total", Counter, [], "Access records lost because the log could not be written fast enough or at all.";
    SeriesRefused = "tidegate_series_refused_total", Counter, [], "Routes counted as site=\"other\" because the table of series is full.";
    ConfigGeneration = "tidegate_config_generation", Gauge, [], "Number of the configuration in force.";
    Reloads = "tidegate_reloads_total", Counter, ["result"], "Reloads: applied, unchanged, partial (a site was quarantined) or refused.";
    LastReload = "tidegate_last_reload_timestamp_seconds", Gauge, [], "When the last reload was applied, in seconds since 1970.";
    Sites = "tidegate_sites", Gauge, ["state"], "Sites, by state.";
    SiteQuarantined = "tidegate_site_quarantined", Gauge, ["site"], "1 where the site's newest configuration was refused and its last good one serves.";
    CertificateExpiry = "tidegate_certificate_not_after_timestamp_seconds", Gauge, ["site"], "When the site's certificate expires, in seconds since 1970.";
    CertificateState = "tidegate_certificates", Gauge, ["state"], "Automatic certificates, by state: valid, due, unused, ordering, failed, waiting.";
    AcmeOrders = "tidegate_acme_orders_total", Counter, ["result"], "Tries to get a certificate, by how they ended: issued, or why not (validation, dns, rate-limited, rejected, account, network, store, clock, canary, other).";
    CertificateWaits = "tidegate_certificate_waits_total", Counter, ["result"], "Handshakes for a name without a certificate, by how they ended: issued (they went on with it), or why not (disallowed, unanswered, limit, busy, failed, later, late, full).";
    OnDemandQuestions = "tidegate_on_demand_questions_total", Counter, ["answer"], "Questions whether a name is allowed, by answer: yes, no or none.";
    CertificateWaiters = "tidegate_certificate_waiters", Gauge, [], "Handshakes that wait for a certificate now.";
    CertificateRefusals = "tidegate_certificate_refusals", Gauge, [], "Names and sites remembered for which no handshake waits for now.";
    ClockOffset = "tidegate_clock_offset_seconds", Gauge, [], "How far this machine's clock is ahead of the authority's, negative when behind, as of the last answer.";
    ClockSynchronised = "tidegate_clock_synchronised", Gauge, [], "1 where the kernel says that something keeps its clock in time. Absent where it may not be asked.";
    ClockErrorBound = "tidegate_clock_error_bound_seconds", Gauge, [], "How far the kernel's clock may be off, as the kernel says.";
    ClockWrong = "tidegate_clock_wrong", Gauge, [], "1 while the clock is wrong and no certificate is ordered or put in force.";
    AcmeChallenges = "tidegate_acme_challenges_answered_total", Counter, ["challenge"], "Challenges of ACME authorities that workers answered.";
    DiscoveredEndpoints = "tidegate_discovered_endpoints", Gauge, ["source"], "Endpoints that a source named last.";
    DiscoveryFailing = "tidegate_discovery_failing", Gauge, ["source"], "1 where a source does not answer and its last endpoints stay.";
    EngineUp = "tidegate_container_engine_up", Gauge, [], "1 while the container engine answers; at 0 its last containers and sites stay.";
    EngineContainers = "tidegate_containers", Gauge, [], "Containers with labels that concern Tidegate.";
    EngineProblems = "tidegate_container_label_problems", Gauge, [], "Labels of containers that cannot be understood.";
    EndpointUp = "tidegate_endpoint_up", Gauge, ["service", "address"], "1 where nothing speaks against the endpoint, 0 where its health check failed, it cannot be connected to or is ejected.";
    EndpointInFlight = "tidegate_endpoint_in_flight", Gauge, ["service", "address"], "Requests the endpoint is answering now.";
    EndpointHealthy = "tidegate_endpoint_healthy", Gauge, ["service", "address"], "1 where the health check says that the endpoint is well. Absent where there is no health check, or no answer yet.";
    EndpointCheck = "tidegate_endpoint_check_success", Gauge, ["service", "address"], "1 where the last answer to the health check was a good one.";
    EndpointEjected = "tidegate_endpoint_ejected", Gauge, ["service", "address"], "1 while the endpoint is ejected because it fails requests. Absent otherwise.";
    EndpointEjections = "tidegate_endpoint_ejections_total", Counter, ["service", "address", "cause"], "Ejections, by cause: consecutive, error-rate, latency.";
    ServicePanic = "tidegate_service_panic", Gauge, ["service"], "1 while so few endpoints are in good standing that all get requests. Absent otherwise.";
    ServiceSpill = "tidegate_service_spill_ratio", Gauge, ["service"], "Share of requests that go to backups because too few of the others are in good standing. Absent while none do, and where no other endpoint is left.";
    HealthProbes = "tidegate_health_probes_total", Counter, ["result"], "Health checks that ended, by result: well or ill.";
    HealthProbesActive = "tidegate_health_probes_active", Gauge, [], "Health checks under way.";
    Workers = "tidegate_workers", Gauge, [], "Worker threads.";
    BuildInfo = "tidegate_build_info", Gauge, ["version"], "Always 1; the label carries the version.";
    ProcessStart = "process_start_time_seconds", Gauge, [], "When the process began, in seconds since 1970.";
    ProcessMemory = "process_resident_memory_bytes", Gauge, [], "Memory in use.";
    ProcessCpu = "process_cpu_seconds_total", Counter, [], "Processor time used, user and system.";
    ProcessFds = "process_open_fds", Gauge, [], "File descriptors open.";
    ProcessFdsMax = "process_max_fds", Gauge, [], "File descriptors allowed.";
    ProcessThreads = "process_threads", Gauge, [], "Threads.";
}

macro_rules! cells {
    ($(#[$doc:meta])* $type:ident { $($cell:ident = $metric:ident [$($value:literal),*];)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "the metric and the label values say it")]
        pub enum $type { $($cell,)+ }

        impl $type {
            /// Every cell.
            pub const ALL: &'static [$type] = &[$($type::$cell,)+];

            /// The metric it belongs to and its label values.
            pub const fn cell(self) -> (Metric, &'static [&'static str]) {
                match self {
                    $($type::$cell => (Metric::$metric, &[$($value),*]),)+
                }
            }
        }
    };
}

cells! {
    /// A counter each worker has once.
    Counter {
        OpenedHttp = ConnectionsOpened ["http"];
        OpenedHttps = ConnectionsOpened ["https"];
        ClosedHttp = ConnectionsClosed ["http"];
        ClosedHttps = ConnectionsClosed ["https"];
        RefusedClientCap = ConnectionsRefused ["client-cap"];
        RefusedBanned = ConnectionsRefused ["banned"];
        BansMade = BansMade [];
        BandwidthDown = BandwidthWaits ["down"];
        BandwidthUp = BandwidthWaits ["up"];
        RefusedTotalCap = ConnectionsRefused ["total-cap"];
        RefusedDescriptors = ConnectionsRefused ["descriptors"];
        RefusedReserve = ConnectionsRefused ["reserve"];
        RefusedSiteCap = ConnectionsRefused ["site-cap"];
        RefusedHandshakeQueue = ConnectionsRefused ["handshake-queue"];
        RefusedAddress = ConnectionsRefused ["address"];
        RefusedShare = ConnectionsRefused ["share"];
        RefusedOverload = ConnectionsRefused ["overload"];
        RefusedOverloadClient = ConnectionsRefused ["overload-client"];
        RefusedShareHandshakes = ConnectionsRefused ["share-handshakes"];
        RefusedProxyHeader = ConnectionsRefused ["proxy-header"];
        Tls12Full = Handshakes ["1.2", "full"];
        Tls12Resumed = Handshakes ["1.2", "resumed"];
        Tls13Full = Handshakes ["1.3", "full"];
        Tls13Resumed = Handshakes ["1.3", "resumed"];
        HandshakeTimeout = HandshakeFailures ["timeout"];
        HandshakeNoSni = HandshakeFailures ["no-sni"];
        HandshakeUnknownName = HandshakeFailures ["unknown-name"];
        HandshakeProtocol = HandshakeFailures ["protocol"];
        HandshakeIo = HandshakeFailures ["io"];
        HandshakePlainHttp = HandshakeFailures ["plain-http"];
        HandshakeNoCertificate = HandshakeFailures ["no-certificate"];
        WaitIssued = CertificateWaits ["issued"];
        WaitDisallowed = CertificateWaits ["disallowed"];
        WaitUnanswered = CertificateWaits ["unanswered"];
        WaitLimit = CertificateWaits ["limit"];
        WaitBusy = CertificateWaits ["busy"];
        WaitFailed = CertificateWaits ["failed"];
        WaitLater = CertificateWaits ["later"];
        WaitLate = CertificateWaits ["late"];
        WaitFull = CertificateWaits ["full"];
        FloodResets = Floods ["resets"];
        FloodPings = Floods ["pings"];
        FloodSettings = Floods ["settings"];
        FloodEmptyData = Floods ["empty-data"];
        FloodWindowUpdates = Floods ["window-updates"];
        FloodPriorities = Floods ["priorities"];
        FloodContinuations = Floods ["continuations"];
        FloodUnknown = Floods ["unknown-frames"];
        FloodStalls = Floods ["stalls"];
        FloodExcess = Floods ["excess"];
        FloodDelayed = FloodDelays [];
        RequestsResetEarly = ResetEarly [];
        HandshakeOldest = HandshakeFailures ["gave-way"];
        HandshakeSilent = HandshakeFailures ["no-bytes"];
        HandshakeAbandoned = HandshakeFailures ["abandoned"];
        HandshakeNotTls = HandshakeFailures ["not-tls"];
        HandshakeMalformed = HandshakeFailures ["malformed"];
        HandshakeTooLarge = HandshakeFailures ["too-large"];
        HandshakeVersion = HandshakeFailures ["version"];
        HandshakeNoCipher = HandshakeFailures ["no-cipher"];
        HandshakeAlpn = HandshakeFailures ["alpn"];
        HandshakeBadSni = HandshakeFailures ["bad-name"];
        HandshakeAlert = HandshakeFailures ["alert"];
        ClientCertMissing = HandshakeFailures ["client-cert-missing"];
        ClientCertUntrusted = HandshakeFailures ["client-cert-untrusted"];
        ClientCertRevoked = HandshakeFailures ["client-cert-revoked"];
        ClientCertExpired = HandshakeFailures ["client-cert-expired"];
        ClientCertUnchecked = HandshakeFailures ["client-cert-unchecked"];
        ClientCertInvalid = HandshakeFailures ["client-cert-invalid"];
        ClientCertVerified = ClientCerts ["verified"];
        ClientCertAbsent = ClientCerts ["absent"];
        ChallengeHttp01 = AcmeChallenges ["http-01"];
        ChallengeTlsAlpn01 = AcmeChallenges ["tls-alpn-01"];
        UpstreamOpened = UpstreamOpened [];
        UpstreamReused = UpstreamReused [];
        UpstreamRefused = UpstreamFailures ["refused"];
        UpstreamTimeout = UpstreamFailures ["timeout"];
        UpstreamName = UpstreamFailures ["name"];
        UpstreamTls = UpstreamFailures ["tls"];
        UpstreamIo = UpstreamFailures ["io"];
        UpstreamDescriptors = UpstreamFailures ["descriptors"];
        UpstreamNotH2 = UpstreamFailures ["not-h2"];
        UpstreamBusy = UpstreamFailures ["busy"];
        UpstreamStreamsRefused = UpstreamStreamsRefused [];
        UpstreamPlaintext = UpstreamPlaintext [];
        UpstreamEvicted = UpstreamEvicted [];
        AuthBasicAccepted = Auth ["basic", "accepted"];
        AuthBasicMissing = Auth ["basic", "missing"];
        AuthBasicWrong = Auth ["basic", "wrong"];
        AuthBasicBusy = Auth ["basic", "busy"];
        AuthForwardAccepted = Auth ["forward", "accepted"];
        AuthForwardRemembered = AuthRemembered [];
        AuthForwardMissing = Auth ["forward", "missing"];
        AuthForwardDenied = Auth ["forward", "denied"];
        AuthForwardRedirected = Auth ["forward", "redirected"];
        AuthForwardBusy = Auth ["forward", "busy"];
        AuthForwardUnavailable = Auth ["forward", "unavailable"];
        AuthJwtAccepted = Auth ["jwt", "accepted"];
        AuthJwtMissing = Auth ["jwt", "missing"];
        AuthJwtWrong = Auth ["jwt", "wrong"];
        AuthJwtDenied = Auth ["jwt", "denied"];
        AuthJwtUnavailable = Auth ["jwt", "unavailable"];
        AuthCertAccepted = Auth ["client-cert", "accepted"];
        AuthCertMissing = Auth ["client-cert", "missing"];
        AuthCertDenied = Auth ["client-cert", "denied"];
        AuthHashes = AuthHashes [];
        UpstreamStale = UpstreamStale [];
        RetriesConnect = Retries ["connect"];
        RetriesReset = Retries ["reset"];
        RetriesTimeout = Retries ["timeout"];
        RetriesStatus = Retries ["status"];
        RetryBudget = RetryBudget [];
        QueueServed = QueueWaits ["served"];
        QueueFull = QueueWaits ["full"];
        QueueTimeout = QueueWaits ["timeout"];
        QueueGone = QueueWaits ["gone"];
        ShareWaits = ShareWaits [];
        ShedShare = Shed ["share"];
        ShedOverload = Shed ["overload"];
        ShedBackends = Shed ["share-backends"];
        Tunnels = Tunnels [];
        TunnelBytesIn = TunnelBytes ["in"];
        TunnelBytesOut = TunnelBytes ["out"];
    }
}

cells! {
    /// A gauge each worker has once; the sum over the workers is shown.
    Gauge {
        ActiveHttp = ConnectionsActive ["http"];
        ActiveHttps = ConnectionsActive ["https"];
        Resting = ConnectionsResting [];
        TunnelsActive = TunnelsActive [];
        HandshakesClient = HandshakesActive ["client"];
        HandshakesTurn = HandshakesActive ["turn"];
    }
}

/// Words of the `method` label. Anything a client invents is `other`, so that nobody can make series.
pub const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "other"];
/// Words of the `status` label.
pub const STATUSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];

/// Position of a method in [`METHODS`].
pub fn method_index(method: &http::Method) -> usize {
    match *method {
        http::Method::GET => 0,
        http::Method::HEAD => 1,
        http::Method::POST => 2,
        http::Method::PUT => 3,
        http::Method::DELETE => 4,
        http::Method::PATCH => 5,
        http::Method::OPTIONS => 6,
        _ => 7,
    }
}

/// Position of a status in [`STATUSES`].
pub fn status_index(status: u16) -> usize {
    match status {
        100..=599 => usize::from(status / 100 - 1),
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_legal_and_carry_their_unit() {
        let mut names: Vec<_> = Metric::ALL.iter().map(|m| m.row().name).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(before, names.len(), "a metric name stands twice");
        for metric in Metric::ALL {
            let row = metric.row();
            assert!(row.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", row.name);
            assert_eq!(row.kind == Kind::Counter, row.name.ends_with("_total"), "{}", row.name);
            assert!(row.help.ends_with('.'), "{}", row.name);
        }
    }

    #[test]
    fn cells_have_as_many_values_as_their_metric_has_labels_and_never_repeat() {
        let cells: Vec<_> = Counter::ALL.iter().map(|c| c.cell()).collect();
        let gauges: Vec<_> = Gauge::ALL.iter().map(|c| c.cell()).collect();
        for (i, (metric, values)) in cells.iter().chain(&gauges).enumerate() {
            assert_eq!(metric.row().labels.len(), values.len(), "{metric:?}");
            let twice = cells.iter().chain(&gauges).skip(i + 1).any(|other| other == &(*metric, *values));
            assert!(!twice, "{metric:?} {values:?} stands twice");
        }
        assert!(cells.iter().all(|(m, _)| m.row().kind == Kind::Counter));
        assert!(gauges.iter().all(|(m, _)| m.row().kind == Kind::Gauge));
    }

    #[test]
    fn methods_and_statuses_outside_the_tables_are_other() {
        for (i, name) in METHODS.iter().enumerate().take(7) {
            assert_eq!(method_index(&name.parse().unwrap()), i);
        }
        assert_eq!(METHODS[method_index(&"BREW".parse().unwrap())], "other");
        for (status, class) in [(100, "1xx"), (200, "2xx"), (308, "3xx"), (499, "4xx"), (599, "5xx")] {
            assert_eq!(STATUSES[status_index(status)], class);
        }
        for status in [0, 99, 600, u16::MAX] {
            assert_eq!(STATUSES[status_index(status)], "other");
        }
    }
}
