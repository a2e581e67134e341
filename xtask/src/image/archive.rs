//! The OCI image layout (image-spec 1.1) as a tar file. The same input makes the same bytes: times
//! are fixed, JSON keys sorted.
//!
//! The image holds the daemon and the CNI plugin, and nothing else. No certificates: the API
//! server's is verified with the CA of the service account or the kubeconfig. No passwd: the user
//! is given by number.

use std::io::Write;

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What goes into an image.
#[derive(Debug)]
pub(super) struct Image<'a> {
    /// The daemon, statically linked.
    pub(super) binary: &'a [u8],
    /// The CNI plugin, statically linked.
    pub(super) plugin: &'a [u8],
    /// As OCI says it: `amd64`, `arm64`.
    pub(super) architecture: &'a str,
    /// The full name with its tag.
    pub(super) name: &'a str,
    /// The version of the workspace.
    pub(super) version: &'a str,
    /// RFC 3339.
    pub(super) created: &'a str,
    /// The commit, if known.
    pub(super) revision: Option<&'a str>,
}

/// A finished archive.
#[derive(Debug)]
pub(super) struct Archive {
    /// The tar file.
    pub(super) bytes: Vec<u8>,
    /// What identifies the image.
    pub(super) manifest_digest: String,
}

/// A blob and how others refer to it.
struct Blob {
    bytes: Vec<u8>,
    digest: String,
    media_type: &'static str,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Blob { digest: digest(&bytes), bytes, media_type }
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// A digest as OCI writes it.
pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::from("sha256:"), |text, byte| format!("{text}{byte:02x}"))
}

impl Image<'_> {
    /// Makes the archive.
    pub(super) fn archive(&self) -> Result<Archive> {
        let layer_tar = layer(self.binary, self.plugin)?;
        let layer = Blob::new(LAYER, gzip(&layer_tar)?);
        let config = Blob::new(CONFIG, serde_json::to_vec(&self.config(&digest(&layer_tar)))?);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": config.descriptor(), "layers": [layer.descriptor()],
            "annotations": self.labels(),
        });
        let manifest = Blob::new(MANIFEST, serde_json::to_vec(&manifest)?);
        let index = serde_json::to_vec(&self.index(&manifest))?;
        let layout = serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?;
        let mut tar = Tar::new();
        tar.file("oci-layout", &layout, 0o644)?;
        tar.file("index.json", &index, 0o644)?;
        tar.directory("blobs/")?;
        tar.directory("blobs/sha256/")?;
        for blob in [&manifest, &config, &layer] {
            tar.file(&blob_path(&blob.digest), &blob.bytes, 0o644)?;
        }
        Ok(Archive { bytes: tar.finish()?, manifest_digest: manifest.digest })
    }

    fn config(&self, diff_id: &str) -> Value {
        json!({
            "created": self.created, "architecture": self.architecture, "os": "linux",
            "config": {
                "Entrypoint": ["/usr/local/bin/sluice"],
                "Env": ["PATH=/usr/local/bin"],
                "WorkingDir": "/",
                "User": "0:0",
                "Labels": self.labels(),
            },
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": self.created, "created_by": "cargo xtask image"}],
        })
    }

    fn labels(&self) -> Value {
        let mut labels = json!({
            "org.opencontainers.image.title": "Sluice",
            "org.opencontainers.image.description": "Service proxy and pod network for Linux Kubernetes nodes",
            "org.opencontainers.image.version": self.version,
            "org.opencontainers.image.created": self.created,
            "org.opencontainers.image.licenses": "Apache-2.0",
        });
        if let Some(revision) = self.revision {
            labels["org.opencontainers.image.revision"] = revision.into();
        }
        labels
    }

    fn index(&self, manifest: &Blob) -> Value {
        let mut descriptor = manifest.descriptor();
        descriptor["platform"] = json!({"architecture": self.architecture, "os": "linux"});
        let tag = self.name.rsplit_once(':').map_or(self.name, |(_, tag)| tag);
        // The first is what the specification knows; containerd and docker take the full name from
        // the second.
        descriptor["annotations"] =
            json!({"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": self.name});
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]})
    }
}

/// Where a layout keeps a blob.
pub(super) fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// The image's file system. A DaemonSet made for kube-proxy finds its command too.
fn layer(binary: &[u8], plugin: &[u8]) -> Result<Vec<u8>> {
    let mut tar = Tar::new();
    for directory in ["usr/", "usr/local/", "usr/local/bin/"] {
        tar.directory(directory)?;
    }
    tar.link("usr/local/bin/kube-proxy", "sluice")?;
    tar.file("usr/local/bin/sluice", binary, 0o755)?;
    tar.file("usr/local/bin/sluice-cni", plugin, 0o755)?;
    tar.finish()
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    // A builder's header has no time, no name and no system in it.
    let mut writer = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::best());
    writer.write_all(bytes)?;
    Ok(writer.finish()?)
}

/// A tar file whose entries belong to root and have no time.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Tar(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, size: usize, mode: u32) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    }

    fn file(&mut self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Regular, bytes.len(), mode);
        Ok(self.0.append_data(&mut header, path, bytes)?)
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Directory, 0, 0o755);
        Ok(self.0.append_data(&mut header, path, &[][..])?)
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Symlink, 0, 0o777);
        Ok(self.0.append_link(&mut header, path, target)?)
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Unpacked, verify};
    use super::*;

    fn image() -> Image<'static> {
        Image {
            binary: b"\x7fELF and more",
            plugin: b"\x7fELF of the plugin",
            architecture: "amd64",
            name: "registry.example/sluice:1",
            version: "1",
            created: "2026-01-02T03:04:05Z",
            revision: Some("abc"),
        }
    }

    #[test]
    fn the_same_input_makes_the_same_bytes_and_another_input_others() {
        let (one, two) = (image().archive().unwrap(), image().archive().unwrap());
        assert_eq!(one.bytes, two.bytes);
        let other = Image { binary: b"\x7fELF and less", ..image() }.archive().unwrap();
        assert_ne!(one.manifest_digest, other.manifest_digest);
    }

    #[test]
    fn an_archive_verifies_and_a_changed_byte_does_not() {
        let mut archive = image().archive().unwrap();
        let Unpacked { config, layer } = verify(&archive.bytes).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/usr/local/bin/sluice"]));
        assert_eq!(config["config"]["Labels"]["org.opencontainers.image.revision"], "abc");
        let mut paths = Vec::new();
        for entry in tar::Archive::new(&layer[..]).entries().unwrap() {
            paths.push(entry.unwrap().path().unwrap().display().to_string());
        }
        assert_eq!(
            paths,
            [
                "usr/",
                "usr/local/",
                "usr/local/bin/",
                "usr/local/bin/kube-proxy",
                "usr/local/bin/sluice",
                "usr/local/bin/sluice-cni"
            ]
        );
        let last = archive.bytes.windows(2).rposition(|window| window == [0x1f, 0x8b]).unwrap();
        archive.bytes[last + 20] ^= 1;
        assert!(verify(&archive.bytes).unwrap_err().to_string().contains("sha256"));
    }
}
