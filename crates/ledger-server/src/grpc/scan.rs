//! Messages as their bytes arrive: how long each is, and how often it has a field, before any of it is decoded.
//!
//! The framing is that of gRPC over HTTP/2 ("Length-Prefixed-Message"); the fields are those of Protocol Buffers
//! ("Encoding": <https://protobuf.dev/programming-guides/encoding/>).

use crate::{
    grpc::methods::{CountedField, Method},
    grpc::status::Refusal,
};
use tonic::Code;

/// The compression flag and the length before each message.
const HEADER: usize = 5;
/// Bytes of a message for each of a counted field, at least: an honest one is longer.
const MIN_BYTES_PER_FIELD: usize = 8;
/// So many of them may be denser.
const DENSE_FIELDS_ALLOWED: usize = 1024;

/// Reads along.
#[derive(Debug)]
pub struct MessageScanner {
    method: Method,
    header: [u8; HEADER],
    header_len: usize,
    /// The length of the message whose bytes are arriving, and how much of it is still to come.
    len: usize,
    left: usize,
    count: usize,
    field: Field,
}

/// Where in a message's fields the bytes are.
#[derive(Debug, Clone, Copy, Default)]
struct Field {
    state: State,
    value: u64,
    shift: u32,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    #[default]
    Key,
    Varint,
    Length,
    Skip(u64),
    /// It is no message, or has a form that is not looked into: decoding says so.
    Unknown,
}

impl MessageScanner {
    /// Of a method's requests.
    pub fn new(method: Method) -> Self {
        Self {
            method,
            header: [0; HEADER],
            header_len: 0,
            len: 0,
            left: 0,
            count: 0,
            field: Field::default(),
        }
    }

    /// Whether a message has begun and not ended.
    pub const fn is_within(&self) -> bool {
        self.left > 0 || self.header_len > 0
    }

    /// The length of the message that has begun and not ended.
    pub const fn begun(&self) -> usize {
        if self.left > 0 { self.len } else { 0 }
    }

    /// Reads on, to the end of the bytes or the end of a header; gives how many bytes were read, and the length of the
    /// message if it begins behind them.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` or `RESOURCE_EXHAUSTED`: the message is malformed, too large, or repeats a field too often.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(usize, Option<usize>), Refusal> {
        let mut at = 0;
        while at < bytes.len() {
            if self.left > 0 {
                let part = &bytes[at..(at + self.left).min(bytes.len())];
                self.count(part)?;
                self.left -= part.len();
                at += part.len();
                continue;
            }
            self.header[self.header_len] = bytes[at];
            (self.header_len, at) = (self.header_len + 1, at + 1);
            if self.header_len == HEADER {
                let [_, length @ ..] = self.header;
                self.begin(u32::from_be_bytes(length) as usize)?;
                return Ok((at, Some(self.len)));
            }
        }
        Ok((at, None))
    }

    fn begin(&mut self, len: usize) -> Result<(), Refusal> {
        (self.len, self.left, self.header_len, self.count) = (len, len, 0, 0);
        self.field = Field::default();
        let most = self.method.request;
        if len > most {
            let message = format!(
                "the message has {len} bytes, and this call takes messages of {most}: send less at once, or in parts"
            );
            return Err(Refusal::new(Code::ResourceExhausted, message));
        }
        Ok(())
    }

    fn count(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let Some(counted) = self.method.counted else { return Ok(()) };
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match self.field.state {
                State::Unknown => return Ok(()),
                State::Skip(0) => self.field = Field::default(),
                State::Skip(left) => {
                    let part = left.min((bytes.len() - at) as u64);
                    self.field.state = State::Skip(left - part);
                    at += part as usize;
                }
                _ => {
                    at += 1;
                    if let Some(number) = self.field.push(*byte)
                        && number == counted.number
                    {
                        self.count += 1;
                        self.check(counted)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn check(&self, counted: CountedField) -> Result<(), Refusal> {
        let CountedField { name, most, .. } = counted;
        if self.count > most || self.count > DENSE_FIELDS_ALLOWED + self.len / MIN_BYTES_PER_FIELD {
            let message = format!(
                "a message of {} bytes repeats `{name}` more often than it may: at most {most} times, and once for {MIN_BYTES_PER_FIELD} \
                 bytes",
                self.len
            );
            return Err(Refusal::field(name, message));
        }
        Ok(())
    }
}

impl Field {
    /// Takes a byte of a number; gives the field's number when its key is whole.
    fn push(&mut self, byte: u8) -> Option<u32> {
        if self.shift > 63 {
            self.state = State::Unknown;
            return None;
        }
        self.value |= u64::from(byte & 0x7f) << self.shift;
        self.shift += 7;
        if byte & 0x80 != 0 {
            return None;
        }
        let value = std::mem::take(&mut self.value);
        self.shift = 0;
        match self.state {
            State::Key => {
                self.state = match value & 7 {
                    0 => State::Varint,
                    1 => State::Skip(8),
                    2 => State::Length,
                    5 => State::Skip(4),
                    _ => State::Unknown,
                };
                return u32::try_from(value >> 3).ok();
            }
            State::Length => self.state = State::Skip(value),
            _ => self.state = State::Key,
        }
        None
    }
}

/// How many pairs of metadata an encoded item of a batch has: `AppendItem.request.metadata`.
pub fn metadata_of_item(item: &[u8]) -> usize {
    let request = fields(item).filter(|(number, _)| *number == 2).flat_map(|(_, request)| fields(request));
    request.filter(|(number, _)| *number == 4).count()
}

/// The tag of an encoded item of a batch: `AppendItem.tag`; 0 if there is none.
pub fn tag_of_item(mut item: &[u8]) -> u64 {
    let mut tag = 0;
    while let Ok(key) = prost::encoding::decode_varint(&mut item) {
        match (key >> 3, key & 7, prost::encoding::decode_varint(&mut item)) {
            (1, 0, Ok(value)) => tag = value,
            (_, 0, Ok(_)) => {}
            (_, 2, Ok(len)) => match usize::try_from(len).ok().and_then(|len| item.get(len..)) {
                Some(rest) => item = rest,
                None => break,
            },
            _ => break,
        }
    }
    tag
}

/// The length-delimited fields of a message, up to the first that is malformed.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            if message.is_empty() {
                return None;
            }
            let key = prost::encoding::decode_varint(&mut message).ok()?;
            let number = u32::try_from(key >> 3).ok()?;
            match key & 7 {
                0 => _ = prost::encoding::decode_varint(&mut message).ok()?,
                1 => message = message.get(8..)?,
                5 => message = message.get(4..)?,
                2 => {
                    let len = usize::try_from(prost::encoding::decode_varint(&mut message).ok()?).ok()?;
                    let (field, rest) = message.split_at_checked(len)?;
                    message = rest;
                    return Some((number, field));
                }
                _ => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use ledger_proto::{
        context::v1::AppendRequest,
        ledger::v1::{AppendBatch, AppendItem},
    };
    use prost::Message as _;

    use super::*;
    use crate::grpc::methods::Kind;

    fn method(most: usize) -> Method {
        Method {
            kind: Kind::ClientStream,
            request: 1 << 20,
            counted: Some(CountedField { number: 1, name: "items", most }),
            answer: 0,
            is_long: false,
            is_steady: false,
        }
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        let len = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0], &len[..], message].concat()
    }

    /// Feeds bytes in pieces; the lengths of the messages.
    fn scanned(scan: &mut MessageScanner, bytes: &[u8], piece: usize) -> Result<Vec<usize>, Refusal> {
        let mut lengths = Vec::new();
        for mut part in bytes.chunks(piece) {
            while !part.is_empty() {
                let (read, len) = scan.feed(part)?;
                lengths.extend(len);
                part = &part[read..];
            }
        }
        Ok(lengths)
    }

    fn batch(items: usize) -> Vec<u8> {
        let request = AppendRequest {
            context_id: "c".into(),
            key: "facts".into(),
            payload: vec![9; 70].into(),
            metadata: [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into(),
            ..Default::default()
        };
        let item = |tag| AppendItem { tag, request: Some(request.clone()) };
        AppendBatch { items: (0..items as u64).map(item).collect() }.encode_to_vec()
    }

    #[test]
    fn messages_are_measured_and_their_fields_counted_wherever_they_are_cut() {
        let bytes = [framed(&batch(3)), framed(&[]), framed(&batch(5))].concat();
        for piece in [1, 2, 3, 7, 64, 1000, bytes.len()] {
            let mut scan = MessageScanner::new(method(5));
            let lengths = scanned(&mut scan, &bytes, piece).unwrap();
            assert_eq!(lengths, [batch(3).len(), 0, batch(5).len()]);
            assert!(!scan.is_within());
            let refusal = scanned(&mut MessageScanner::new(method(4)), &bytes, piece).unwrap_err();
            assert_eq!(refusal.field, Some("items"));
        }
    }

    #[test]
    fn empty_items_are_refused_long_before_they_are_many() {
        let message = [0x0a, 0].repeat(400_000);
        let mut scan = MessageScanner::new(method(usize::MAX));
        let refusal = scanned(&mut scan, &framed(&message), 16 << 10).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidArgument);
        assert!(
            scan.count <= DENSE_FIELDS_ALLOWED + message.len() / MIN_BYTES_PER_FIELD + 1,
            "{}",
            scan.count
        );
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_header() {
        let header = [0, 0, 0x20, 0, 0];
        let refusal = scanned(&mut MessageScanner::new(method(1)), &header, 5).unwrap_err();
        assert_eq!(refusal.code, Code::ResourceExhausted);
        assert!(refusal.message.contains("2097152 bytes"), "{}", refusal.message);
    }

    #[test]
    fn the_metadata_of_an_item_is_counted_before_it_is_decoded() {
        let batch = AppendBatch::decode(&batch(1)[..]).unwrap();
        assert_eq!(metadata_of_item(&batch.items[0].encode_to_vec()), 2);
        assert_eq!(metadata_of_item(&[0xff; 9]), 0);
    }

    #[test]
    fn the_tag_of_an_item_is_found_without_decoding_it() {
        for tag in [0, 1, 300, u64::MAX] {
            let request = AppendRequest { context_id: "c".into(), ..Default::default() };
            let item = AppendItem { tag, request: Some(request) }.encode_to_vec();
            assert_eq!(tag_of_item(&item), tag);
            // By hand, in another order, and cut short.
            let reversed = [&item[item.len() - 5..], &item[..item.len() - 5]].concat();
            assert_eq!(tag_of_item(&reversed), tag);
            assert_eq!(tag_of_item(&item[..item.len() - 1]), tag);
        }
        assert_eq!(tag_of_item(&[]), 0);
    }
}
