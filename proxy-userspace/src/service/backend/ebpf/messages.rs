//! What the programs tell of single packets (`sluice.ebpf.debug`), on its way to the log.

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;
use tracing::{info, warn};

/// Reads messages until it is dropped.
#[derive(Default)]
pub(super) struct Messages {
    reader: Option<AbortHandle>,
}

impl Messages {
    /// Reads those of newly loaded programs instead. Must be called inside the runtime.
    pub(super) fn follow(&mut self, object: Option<Ebpf>) {
        let Some(mut object) = object else { return };
        self.end();
        match EbpfLogger::init_with_logger(&mut object, ToTracing) {
            Ok(logger) => self.reader = Some(tokio::spawn(read(logger)).abort_handle()),
            Err(error) => warn!(%error, "cannot read the messages of the eBPF programs"),
        }
    }

    fn end(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.abort();
        }
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.end();
    }
}

async fn read(logger: EbpfLogger<ToTracing>) {
    // SAFETY: the logger owns the descriptor of its ring buffer, and tells the same one as long as
    // it lives.
    let registered = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = match registered {
        Ok(logger) => logger,
        Err(error) => return warn!(%error, "cannot wait for messages of the eBPF programs"),
    };
    while let Ok(mut ready) = logger.readable_mut().await {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}

/// aya-log writes to the crate log.
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        info!(target: "sluice::packets", "{}", record.args());
    }

    fn flush(&self) {}
}
