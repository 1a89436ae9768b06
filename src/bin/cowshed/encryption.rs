//! What a new image is encrypted with: the options `encryption` and `encrypt.*`, in the words of `qemu-img`.

use std::time::{Duration, Instant};

use cowshed::crypt::{
    CipherAlgorithm, CipherMode, HashAlgorithm, Iterations, IvGenerator, LuksArea, LuksScheme,
    Secret, iterations_for,
};
use cowshed::image::Encryption;
use cowshed::rt::SystemEntropy;

use crate::format_options::{FormatOptions, OptionError};
use crate::open;
use crate::secret::{REQUIRED, Secrets};

/// How long deriving the key of a slot takes without `encrypt.iter-time`.
pub(crate) const ITER_TIME_DEFAULT: Duration = Duration::from_secs(2);

/// What the options mean. Making an encryption header takes the time that they say.
///
/// # Errors
/// A value that does not exist, a secret that is not there, or what the system says.
pub(crate) fn of(
    options: &FormatOptions,
    secrets: &Secrets,
) -> Result<Option<Encryption>, OptionError> {
    let given = |name: &str| options.encryption(name);
    let format = match (given("format"), options.flag("encryption")) {
        (Some(_), true) => {
            let text = "'encrypt.format' and its alias 'encryption' can't be used at the same time";
            return Err(text.to_owned().into());
        }
        (Some(format), false) => format,
        (None, true) => "aes",
        (None, false) if OPTIONS.iter().any(|name| given(name).is_some()) => {
            return Err("Parameter 'encrypt.format' is missing".to_owned().into());
        }
        (None, false) => return Ok(None),
    };
    match format {
        "aes" => {
            let id = given("key-secret").ok_or_else(|| REQUIRED.to_owned())?;
            secrets.passphrase(id)?;
            Ok(Some(Encryption::Aes))
        }
        "luks" => Ok(Some(Encryption::Luks(area(options, secrets)?))),
        other => Err(format!("Parameter 'format' does not accept value '{other}'").into()),
    }
}

/// The encryption header that the options ask for.
///
/// # Errors
/// As [`of`].
pub(crate) fn area(options: &FormatOptions, secrets: &Secrets) -> Result<LuksArea, OptionError> {
    let scheme = scheme(options)?;
    let secret = passphrase(options, secrets)?;
    scheme.validate().map_err(|error| open::reason(&error))?;
    let iterations = Iterations::new(iterations(&scheme, options.encryption("iter-time")));
    let area = SystemEntropy::open()
        .and_then(|mut entropy| LuksArea::new(&scheme, &secret, iterations, &mut entropy));
    area.map_err(|error| open::reason(&error).into())
}

/// The length of the encryption header that the options ask for; the secret must be there.
///
/// # Errors
/// As [`of`].
pub(crate) fn area_len_bytes(
    options: &FormatOptions,
    secrets: &Secrets,
) -> Result<u64, OptionError> {
    let scheme = scheme(options)?;
    passphrase(options, secrets)?;
    Ok(LuksArea::len_bytes_for(&scheme))
}

fn passphrase(options: &FormatOptions, secrets: &Secrets) -> Result<Secret, OptionError> {
    let id = options.encryption("key-secret").ok_or_else(|| {
        let name = options.encryption_name("key-secret");
        format!("Parameter '{name}' is required for cipher")
    })?;
    Ok(secrets.passphrase(id)?)
}

/// How many iterations take as long as `iter_time` milliseconds say.
pub(crate) fn iterations(scheme: &LuksScheme, iter_time: Option<&str>) -> u32 {
    let time = iter_time.and_then(|text| text.parse().ok());
    let time = time.map_or(ITER_TIME_DEFAULT, Duration::from_millis);
    let start = Instant::now();
    iterations_for(scheme.hash, scheme.key_len(), time, || start.elapsed())
}

const OPTIONS: [&str; 7] = [
    "key-secret",
    "cipher-alg",
    "cipher-mode",
    "ivgen-alg",
    "ivgen-hash-alg",
    "hash-alg",
    "iter-time",
];

fn scheme(options: &FormatOptions) -> Result<LuksScheme, OptionError> {
    let default = LuksScheme::default();
    let hash = Some(HashAlgorithm::Sha256);
    let iv_generator = value(options, "ivgen-alg", IvGenerator::from_name)?;
    let iv_generator = iv_generator.unwrap_or(default.iv_generator);
    let iv_hash = value(options, "ivgen-hash-alg", HashAlgorithm::from_name)?;
    if options.given("detached-header").is_some() {
        return Err("Parameter 'detached-header' is unexpected".to_owned().into());
    }
    Ok(LuksScheme {
        cipher: value(options, "cipher-alg", CipherAlgorithm::from_name)?.unwrap_or(default.cipher),
        mode: value(options, "cipher-mode", CipherMode::from_name)?.unwrap_or(default.mode),
        iv_generator,
        iv_hash: iv_hash.or(hash.filter(|_| iv_generator == IvGenerator::Essiv)),
        hash: value(options, "hash-alg", HashAlgorithm::from_name)?.unwrap_or(default.hash),
    })
}

/// Algorithms that QEMU has and this command lacks.
const LACKING: [&str; 5] = ["des", "3des", "sm4", "md5", "sm3"];

fn value<T>(
    options: &FormatOptions,
    name: &str,
    from_name: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, OptionError> {
    let Some(value) = options.encryption(name) else { return Ok(None) };
    match from_name(value) {
        Some(value) => Ok(Some(value)),
        None if LACKING.contains(&value) => {
            Err(format!("Algorithm '{value}' not supported").into())
        }
        None => Err(format!("Parameter '{name}' does not accept value '{value}'").into()),
    }
}
