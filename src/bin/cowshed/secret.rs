//! Passphrases: `--object secret,...`, the options that name them, and the terminal.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use clap::ArgMatches;
use cowshed::Error;
use cowshed::crypt::Secret;
use cowshed::image::Locked;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::image_format::ImageFormat;
use crate::names::{Names, parse};
use crate::persona::Persona;

/// What is said where a passphrase is missing.
pub(crate) const REQUIRED: &str = "Parameter 'encrypt.key-secret' is required for cipher";
/// What is said where that of a LUKS volume is missing.
const VOLUME_REQUIRED: &str = "Parameter 'key-secret' is required for cipher";

/// The option of an image of this format that names its passphrase.
pub(crate) fn option(format: &str) -> &'static str {
    match format == ImageFormat::Luks.name() {
        true => "key-secret",
        false => "encrypt.key-secret",
    }
}

/// The secrets of the command line, by id.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets {
    by_id: BTreeMap<String, Secret>,
}

impl Secrets {
    /// What the option `--object` says, each time that it is given.
    ///
    /// # Errors
    /// In `qemu-img`'s words.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Result<Self, Failure> {
        let mut secrets = Self::default();
        for text in matches.get_many::<String>("object").into_iter().flatten() {
            secrets.add(text).map_err(Failure::message)?;
        }
        Ok(secrets)
    }

    /// Adds what one `--object` says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn add(&mut self, text: &str) -> Result<(), String> {
        let kind = text.split(',').next().unwrap_or_default();
        let text = match kind.contains('=') {
            true => text.to_owned(),
            false => format!("qom-type={text}"),
        };
        let (mut names, _) = parse(&text);
        let kind = names.remove("qom-type").ok_or("Parameter 'qom-type' is missing")?;
        let id = names.remove("id").ok_or("Parameter 'id' is missing")?;
        if kind != "secret" {
            return Err(format!("Parameter 'qom-type' does not accept value '{kind}'"));
        }
        let secret = self.secret(names)?;
        if self.by_id.contains_key(&id) {
            return Err(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            ));
        }
        self.by_id.insert(id, secret);
        Ok(())
    }

    /// The passphrase with this id: text, up to its first zero.
    ///
    /// # Errors
    /// There is none, or it is no text.
    pub(crate) fn passphrase(&self, id: &str) -> Result<Secret, String> {
        let secret = self.by_id.get(id).ok_or_else(|| format!("No secret with id '{id}'"))?;
        let bytes = secret.expose();
        if std::str::from_utf8(bytes).is_err() {
            return Err(format!("Data from secret {id} is not valid UTF-8"));
        }
        let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        Ok(Secret::new(bytes[..len].to_vec()))
    }

    fn secret(&self, mut names: Names) -> Result<Secret, String> {
        let [data, file, format, keyid, iv] =
            ["data", "file", "format", "keyid", "iv"].map(|name| names.remove(name));
        if let Some(name) = names.keys().next() {
            return Err(format!("Parameter '{name}' is unexpected"));
        }
        let format = format.as_deref().unwrap_or("raw");
        if !["raw", "base64"].contains(&format) {
            return Err(format!("Parameter 'format' does not accept value '{format}'"));
        }
        let bytes = match (data, file) {
            (Some(_), Some(_)) => return Err("'file' and 'data' are mutually exclusive".into()),
            (None, None) => return Err("Either 'file' or 'data' must be provided".into()),
            (Some(data), None) => Zeroizing::new(data.into_bytes()),
            (None, Some(file)) => read(&file).map_err(|error| {
                format!(
                    "Unable to read {file}: Failed to open file \u{201c}{file}\u{201d}: {}",
                    reason(&error)
                )
            })?,
        };
        let bytes = match (format, &keyid) {
            ("base64", _) | (_, Some(_)) => base64(&bytes)?,
            _ => bytes,
        };
        match (keyid, iv) {
            (None, None) => Ok(Secret::new(bytes.to_vec())),
            (Some(_), None) => Err("IV is required to decrypt secret".to_owned()),
            (None, Some(_)) => Err("Parameter 'iv' needs 'keyid'".to_owned()),
            (Some(keyid), Some(iv)) => self.decrypt(&bytes, &keyid, &iv),
        }
    }

    /// A secret that is encrypted with another one: AES-256 in mode cbc, padded.
    fn decrypt(&self, bytes: &[u8], keyid: &str, iv: &str) -> Result<Secret, String> {
        use cbc::cipher::{BlockModeDecrypt as _, KeyIvInit as _, block_padding::Pkcs7};

        let key = self.by_id.get(keyid).ok_or_else(|| format!("No secret with id '{keyid}'"))?;
        let iv = base64(iv.as_bytes())?;
        if iv.len() != 16 {
            return Err(format!("IV should be 16 bytes in length not {}", iv.len()));
        }
        let key = key.expose();
        let cipher = cbc::Decryptor::<aes::Aes256>::new_from_slices(key, &iv)
            .map_err(|_| format!("Key should be 32 bytes in length not {}", key.len()))?;
        let mut bytes = Zeroizing::new(bytes.to_vec());
        let plain = cipher.decrypt_padded::<Pkcs7>(&mut bytes);
        let plain =
            plain.map_err(|_| "Incorrect number of padding bytes found on decrypted data")?;
        Ok(Secret::new(plain.to_vec()))
    }
}

/// Which passphrases the layers of an image have.
#[derive(Clone, Default)]
pub(crate) struct Keys {
    pub(crate) secrets: Secrets,
    /// Ids of secrets by depth, as far as they are given.
    pub(crate) ids: Vec<Option<String>>,
}

impl Keys {
    /// With the secrets of the command line, the first of them for the image itself if `id` names it.
    pub(crate) fn new(secrets: Secrets, id: Option<&str>) -> Self {
        Self { secrets, ids: vec![id.map(str::to_owned)] }
    }

    /// Takes the ids out of an image's options.
    pub(crate) fn take_ids(&mut self, names: &mut Names) {
        self.ids.clear();
        let mut name = "encrypt.key-secret".to_owned();
        // Those that lie deeper are named by more words.
        let depth_max = names.keys().map(|name| name.matches('.').count()).max().unwrap_or(0);
        for _ in 0..=depth_max {
            self.ids.push(names.remove(&name));
            name.insert_str(0, "backing.");
        }
        // A volume is nobody's layer but its own: those below are opened by their own options.
        let luks = ImageFormat::Luks.name();
        if self.ids[0].is_none() && names.get("driver").is_none_or(|driver| driver == luks) {
            self.ids[0] = names.remove(option(luks));
        }
    }

    /// The passphrase of the image itself, if it is given.
    ///
    /// # Errors
    /// There is no such secret.
    pub(crate) fn own(&self) -> Result<Option<Secret>, String> {
        let id = self.ids.first().and_then(Option::as_ref);
        id.map(|id| self.secrets.passphrase(id)).transpose()
    }

    /// The passphrase of the LUKS volume that the image lies in: what is given, or what a person types.
    ///
    /// # Errors
    /// There is no such secret, or none is given where scripts expect to be told.
    pub(crate) fn of_volume(
        &self,
        location: &Path,
        persona: Persona,
    ) -> Result<Option<Secret>, String> {
        match (self.own()?, persona) {
            (None, Persona::QemuImg | Persona::QemuIo) => Err(VOLUME_REQUIRED.to_owned()),
            (None, Persona::Cowshed) if io::stdin().is_terminal() => {
                ask(location).map(Some).map_err(|error| reason(&error))
            }
            (key, _) => Ok(key),
        }
    }

    /// What a gate says of an encrypted layer: the passphrase that is given for it, or what a person types.
    pub(crate) fn ask(
        &self,
        locked: &Locked<'_>,
        persona: Persona,
    ) -> cowshed::Result<Option<Secret>> {
        let wrong = |text: String| Error::InvalidArgument(text);
        if let Some(Some(id)) = self.ids.get(locked.depth) {
            return self.secrets.passphrase(id).map(Some).map_err(wrong);
        }
        match persona {
            Persona::QemuImg | Persona::QemuIo => Err(wrong(REQUIRED.to_owned())),
            Persona::Cowshed if io::stdin().is_terminal() => ask(locked.location)
                .map(Some)
                .map_err(|source| Error::Open { path: "/dev/tty".into(), source }),
            // What needs none goes on without.
            Persona::Cowshed => Ok(None),
        }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("ids", &self.ids).finish_non_exhaustive()
    }
}

/// What a person types who is asked for the passphrase of an image.
fn ask(location: &Path) -> io::Result<Secret> {
    typed(&format!("Passphrase of {}: ", crate::escape::path(location)))
}

/// What a person types, who does not see it.
fn typed(prompt: &str) -> io::Result<Secret> {
    let tty = Arc::new(OpenOptions::new().read(true).write(true).open("/dev/tty")?);
    let shown = tcgetattr(&*tty)?;
    let mut hidden = shown.clone();
    hidden.local_modes -= LocalModes::ECHO;
    tcsetattr(&*tty, OptionalActions::Flush, &hidden)?;
    let restore = Restore { tty: Arc::clone(&tty), shown };
    (&*tty).write_all(prompt.as_bytes())?;
    let mut line = Zeroizing::new(Vec::new());
    let read = BufReader::new(&*tty).read_until(b'\n', &mut line);
    drop(restore);
    (&*tty).write_all(b"\n")?;
    read?;
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    Ok(Secret::new(line.to_vec()))
}

/// Makes the terminal show again what is typed.
struct Restore {
    tty: Arc<std::fs::File>,
    shown: Termios,
}

impl Drop for Restore {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _ = tcsetattr(&*self.tty, OptionalActions::Flush, &self.shown);
    }
}

fn read(file: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    std::fs::File::open(file)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn reason(error: &io::Error) -> String {
    crate::open::io_reason(error)
}

/// Spec: RFC 4648, section 4; blanks are passed over.
fn base64(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
    let invalid = || "Base64 data contains invalid characters".to_owned();
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 4 * 3));
    let (mut bits, mut count) = (0_u32, 0);
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    let mut digits = text.iter().filter(|byte| !byte.is_ascii_whitespace()).peekable();
    while let Some(&digit) = digits.next_if(|&&digit| digit != b'=') {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(invalid()),
        };
        bits = bits << 6 | u32::from(value);
        count += 1;
        if count % 4 == 0 {
            bytes.extend_from_slice(&bits.to_be_bytes()[1..]);
            bits = 0;
        }
    }
    if digits.any(|&digit| digit != b'=') {
        return Err(invalid());
    }
    match count % 4 {
        0 => {}
        2 => bytes.push((bits >> 4).to_be_bytes()[3]),
        3 => bytes.extend_from_slice(&(bits >> 2).to_be_bytes()[2..]),
        _ => return Err(invalid()),
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Result<Vec<u8>, String> {
        let mut secrets = Secrets::default();
        secrets.add(text)?;
        secrets.passphrase("s").map(|secret| secret.expose().to_vec())
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9v\nYg==", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
        ] {
            assert_eq!(base64(text.as_bytes()).unwrap().as_slice(), bytes.as_bytes());
        }
        assert!(base64(b"Zm9v!").is_err() && base64(b"Z").is_err() && base64(b"Z=g=").is_err());
    }

    // What is expected is what qemu-img 10.0.2 says.
    #[test]
    fn objects_are_read_as_qemu_img_reads_them() {
        assert_eq!(secret("secret,id=s,data=a,,b").unwrap(), b"a,b");
        assert_eq!(secret("secret,id=s,data=YWJj,format=base64").unwrap(), b"abc");
        assert_eq!(secret("qom-type=secret,id=s,data=x").unwrap(), b"x");
        for (text, reason) in [
            ("foo,id=s", "Parameter 'qom-type' does not accept value 'foo'"),
            ("secret,data=a", "Parameter 'id' is missing"),
            ("secret,id=s", "Either 'file' or 'data' must be provided"),
            ("secret,id=s,data=a,file=b", "'file' and 'data' are mutually exclusive"),
            ("secret,id=s,data=!!,format=base64", "Base64 data contains invalid characters"),
            ("secret,id=s,data=a,format=x", "Parameter 'format' does not accept value 'x'"),
            ("secret,id=s,data=a,foo=1", "Parameter 'foo' is unexpected"),
            ("secret,id=t,data=a", "No secret with id 's'"),
        ] {
            assert_eq!(secret(text).unwrap_err(), reason);
        }
    }
}
