// Node's own HTTP/2 client, over TLS.
//
// Arguments: the address, the host, the authority, the name of its certificate (or `-`), then requests as JSON objects,
// which are sent at once over one connection: `path`, `method`, `body`, `fields`, and `protocol` for an extended CONNECT
// (RFC 8441), whose body is sent when the answer is there. It prints one JSON line a request, in their order: `status`,
// `fields`, `interim` (status and fields of the answers before it), `trailers`, `body`, and `reset`, the code of RST_STREAM.

'use strict';

const fs = require('node:fs');
const http2 = require('node:http2');

const [address, host, authority, certificate, ...requests] = process.argv.slice(2);
const options = { ca: fs.readFileSync(`${authority}.crt`), servername: host };
if (certificate !== '-') {
  options.cert = fs.readFileSync(`${certificate}.crt`);
  options.key = fs.readFileSync(`${certificate}.key`);
}

function send(session, wanted) {
  return new Promise((resolve) => {
    const fields = { ':method': wanted.method ?? 'GET', ':path': wanted.path, ':authority': host, ':scheme': 'https' };
    if (wanted.protocol) Object.assign(fields, { ':method': 'CONNECT', ':protocol': wanted.protocol });
    const stream = session.request({ ...fields, ...wanted.fields }, { endStream: false });
    const line = { status: null, fields: null, interim: [], trailers: null, body: '', reset: null };
    stream.setEncoding('latin1');
    stream.on('headers', (headers) => line.interim.push({ status: headers[':status'], fields: headers }));
    stream.on('response', (headers) => {
      line.status = headers[':status'];
      line.fields = headers;
      if (wanted.protocol) stream.end(wanted.body ?? '', 'latin1');
    });
    stream.on('data', (chunk) => { line.body += chunk; });
    stream.on('trailers', (headers) => { line.trailers = headers; });
    stream.on('error', () => {});
    stream.on('close', () => {
      if (stream.rstCode) line.reset = stream.rstCode;
      resolve(line);
    });
    if (!wanted.protocol) stream.end(wanted.body ?? '');
  });
}

const session = http2.connect(`https://${address}`, options);
session.on('error', (error) => {
  console.log(JSON.stringify({ error: error.message }));
  process.exit(0);
});
// Extended CONNECT may be used once the server's SETTINGS allow it.
session.once('remoteSettings', async () => {
  const lines = await Promise.all(requests.map((request) => send(session, JSON.parse(request))));
  for (const line of lines) console.log(JSON.stringify(line));
  session.close();
});
